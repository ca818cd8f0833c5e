"""Rewards of groups of answers: numbers by hand, what rows must hold, and what is refused."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmalign.data.messages import Message
from mmalign.data.rows import PairRow, QuestionRow, read_question
from mmalign.errors import UserError
from mmalign.models.load import load_mllm
from mmalign.options.rows import WordingOptions
from mmalign.rewards.exact import AnswerReward, ObjectReward
from mmalign.rewards.function import FunctionReward
from mmalign.rewards.groups import Group, mark_right, score_groups, win_rates
from mmalign.rewards.learned import ModelReward
from mmalign.rewards.rating import JudgeReward, parse_rating
from tests.engine.test_rewards import plain_reward
from tests.tiny_models import random_image


def group(responses: list[str], *, identifier: str = "7", **row: Any) -> Group:
    prompt = [Message(role="user", content=[{"type": "image"}, {"type": "text", "text": "What is there?"}])]
    return Group(QuestionRow(identifier, [], prompt), responses, row)


def test_right_answers_by_hand() -> None:
    reward = AnswerReward()
    several = group(["<think>a cat</think>Red.", "blue", "", " RED ", "dark  red"], answer=["red", "Dark red"])
    assert score_groups(reward, [several, group(["two", "2"], answer="2")], name="answers") == [[1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0]]
    for value in (None, "", [], ["a", 3], " "):
        with pytest.raises(ValueError, match="answer is .*; expected text, or a list of texts"):
            reward.check({"answer": value}, index=0)


def world(folder: Path) -> Path:
    (folder / "synonyms.txt").write_text("dog, puppy\ncar\nbus\n")
    rows = [{"id": "7", "image": "a.png", "question": "What is there?", "truth": ["dog", "car"]}]
    (folder / "chair.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_objects_by_hand(tmp_path: Path) -> None:
    """Both; one of two; both and one absent; one absent; nothing; what was only thought of does not count."""
    reward = ObjectReward(world(tmp_path))
    texts = ["A puppy and a dog beside a car.", "A dog.", "A dog, a car and two buses.", "A bus.", "", "<think>a bus</think>A car."]
    expected = [1.0, 0.5, 0.5, -0.5, 0.0, 0.5]
    # By the id, and by the row's own column, which comes first.
    assert score_groups(reward, [group(texts)], name="objects") == [expected]
    own = group(["A bus.", "A dog."], truth=["bus"])
    assert score_groups(reward, [own], name="objects") == [[1.0, -1.0]]


def test_objects_need_a_truth_that_has_words(tmp_path: Path) -> None:
    reward = ObjectReward(world(tmp_path))
    reward.check({"id": "7"}, index=0)
    with pytest.raises(ValueError, match="has no truth, and no image of the reward's folder has its id 3"):
        reward.check({}, index=3)
    with pytest.raises(ValueError, match="truth holds boat, which the word list does not name"):
        reward.check({"truth": ["dog", "boat"]}, index=0)
    with pytest.raises(ValueError, match="truth is 'dog'; expected a list"):
        reward.check({"truth": "dog"}, index=0)


class Judge:
    """Rates by the length of the response, and says nothing of one."""

    name, decoding = "counts", {}

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, prompts: Sequence[str]) -> list[str]:
        self.asked += prompts
        responses = [prompt.split("Response: ")[1].split("\n")[0] for prompt in prompts]
        return ["no number" if response == "?" else f"{len(response)} of 10" for response in responses]


def test_a_judge_rates_words_and_is_not_asked_about_none() -> None:
    judge = Judge()
    reward = JudgeReward(judge, None)
    found = score_groups(reward, [group(["abc", "", "?", "<think>long thoughts</think>abcd"], reference="A {dog}.")], name="judge")
    assert found == [[3.0, 1.0, None, 4.0]]
    assert len(judge.asked) == 3
    assert all("Question: What is there?\nReference: A {dog}.\n" in prompt for prompt in judge.asked)
    JudgeReward(judge, "{reference}! Response: {response}")([group(["ab"], reference="r")])
    assert judge.asked[-1] == "r! Response: ab"
    with pytest.raises(ValueError, match="reference is None; expected the text"):
        reward.check({}, index=0)


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("7", 7),
        ("**7**\n", 7),
        ("Rating (1-10): 7", 7),
        ("On a scale of 1 to 10, I rate it 7.", 7),
        ("The response names 2 objects that are absent. Rating: 3/10", 3),
        ("1. The dog is there.\n2. The cat is not.\n\nScore: 4", 4),
        ('```json\n{"rating": 9, "reason": "2 of 3"}\n```', 9),
        ("<think>1 or 2</think>9", 9),
        ("6/10, since 1 of 2 objects is there", 6),
        ("8\n\nThe 2 dogs are there.", 8),
        ("8 - mostly true", 8),
        ("I give it 8.", 8),
        ("I give it 8, as 2 objects are there.", None),
        ("4/5", None),
        ("7 or 8", None),
        ("8.5", None),
        ("0", None),
        ("Rating: 11", None),
        ("good", None),
        ("", None),
    ],
)
def test_ratings_as_judges_write_them(reply: str, rating: int | None) -> None:
    assert parse_rating(reply) == rating


def test_a_function_may_return_an_array_a_tensor_or_their_numbers(tmp_path: Path) -> None:
    forms = {
        "array": "np.array([1.5, 2], dtype=np.float32)",
        "tensor": "torch.tensor([1.5, 2.0])",
        "numbers": "[np.float32(1.5), torch.tensor(2.0)]",
        "nothing": "None",
        "one": "torch.tensor(1.5)",
        "text": "'ab'",
    }
    lines = ["import numpy as np", "import torch", *(f"def {name}(*_): return {code}" for name, code in forms.items())]
    (tmp_path / "reward.py").write_text("\n".join(lines))
    for name in ("array", "tensor", "numbers"):
        reward = FunctionReward(f"{tmp_path}/reward.py:{name}")
        assert score_groups(reward, [group(["a", "b"])], name="function") == [[1.5, 2.0]]
    for name, shown in (("nothing", "None"), ("one", r"tensor\(1.5000\)"), ("text", "'ab'")):
        with pytest.raises(ValueError, match=f"reward.py:{name} returned {shown}; expected a list of numbers"):
            FunctionReward(f"{tmp_path}/reward.py:{name}")([group(["a", "b"])])


def test_a_function_sees_prompt_responses_and_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    line = "    return [len(prompt) + row['bonus'] * len(r) if r else None for r in responses]\n"
    file.write_text(f"def count(prompt, responses, row):\n{line}")
    reward = FunctionReward(f"{file}:count")
    assert score_groups(reward, [group(["ab", "", "abc"], bonus=2)], name="function") == [[18.0, None, 20.0]]
    with pytest.raises(ValueError, match="has no function 'other'"):
        FunctionReward(f"{file}:other")
    with pytest.raises(ValueError, match=r"there is no file .*missing.py; expected function:FILE.py:NAME"):
        FunctionReward(f"{tmp_path}/missing.py:count")


def test_a_function_that_fails_is_told_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def bonus(prompt, responses, row):\n    return [row['bonus']] * len(responses)\n")
    with pytest.raises(UserError, match=r"mine.py:bonus fails on row 'r7': KeyError: 'bonus'; --traceback shows where") as raised:
        FunctionReward(f"{file}:bonus")([group(["a"], id="r7")])
    assert isinstance(raised.value.__cause__, KeyError)
    file.write_text("def ask(prompt, responses, row):\n    raise ConnectionError('no server')\n")
    with pytest.raises(ConnectionError):
        FunctionReward(f"{file}:ask")([group(["a"])])
    file.write_text("import not_there\n")
    with pytest.raises(UserError, match=r"mine.py can't be loaded: ModuleNotFoundError: No module named 'not_there'; --traceback"):
        FunctionReward(f"{file}:ask")


@pytest.mark.parametrize("value", [math.nan, math.inf, "high", [1.0], 10**400])
def test_rewards_that_are_no_numbers_are_refused(value: Any) -> None:
    class Odd(AnswerReward):
        def __call__(self, groups: Sequence[Group]) -> list[Any]:
            return [[1.0, value] for _ in groups]

    with pytest.raises(ValueError, match=r"reward odd gave .* for an answer to row 7: 'b'; expected a finite number"):
        score_groups(Odd(), [group(["a", "b"])], name="odd")
    with pytest.raises(ValueError, match="reward odd gave 2 numbers for 3 answers to row 7"):
        score_groups(Odd(), [group(["a", "b", "c"])], name="odd")


def test_right_samples_by_hand() -> None:
    assert mark_right([0.5, 1.0, -1.0], 1.0) == [0.0, 1.0, 0.0]
    assert mark_right([0.5, 1.0], None) == [0.5, 1.0]


def test_win_rates_by_hand() -> None:
    rates = win_rates([3.0, 5.0, 5.0, 1.0])
    assert rates == pytest.approx([1 / 3, 5 / 6, 5 / 6, 0.0])
    # The label that ``dno`` gives the second against the first.
    assert 1 / (1 + math.exp(-(rates[1] - rates[0]))) == pytest.approx(0.622459331202, abs=1e-12)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"images": []}, "the row has no prompt; expected text or messages under prompt or question"),
        ({"question": [{"role": role, "content": "a"} for role in ("user", "assistant")]}, "ends with the words of the assistant"),
        ({"prompt": " "}, "prompt holds no words"),
    ],
)
def test_questions_that_can_not_be_asked(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_question(raw, index=0)


def test_a_question_is_read_under_two_names() -> None:
    for name in ("prompt", "question"):
        row = read_question({name: "What is there?", "id": 5}, index=0)
        assert (row.id, Group(row, [], {}).prompt) == ("5", "What is there?")


def test_a_reward_model_judges_answers_with_words(tiny_llava_dir: Path) -> None:
    model, processor = load_mllm(str(tiny_llava_dir))
    reward = ModelReward(str(tiny_llava_dir))
    prompt = [Message(role="user", content=[{"type": "image"}, {"type": "text", "text": "What is there?"}])]
    question = QuestionRow("7", [random_image(0)], prompt)
    silent, spoken = Group(question, ["", "<think>hm</think>"], {}), Group(question, ["a dog", " ", "<think>a cat</think>red", "red"], {})
    first, second = score_groups(reward, [silent, spoken], name="model:DIR")
    assert first == [None, None]
    row = PairRow("7", question.images, prompt, "", "", "")
    expected = [plain_reward(model, processor, row, text, WordingOptions()) for text in ("a dog", "red")]
    assert second[1] is None
    assert [second[0], second[2], second[3]] == pytest.approx([expected[0], expected[1], expected[1]], abs=2e-5)
