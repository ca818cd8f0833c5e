"""Step pairs from images alone: steps and values against the plain forward, a search on a tiny world, resume to the same bytes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.scoring import Sampled
from data_tools.search_pairs import SearchOptions as Options
from data_tools.search_pairs import main, run
from data_tools.searching import search_chunk
from data_tools.step_sampling import StepSampler
from data_tools.step_values import AskedValues, RewardValues, TruthValues, answer_tokens, asking
from data_tools.tree import Node, Step, TreeSearch
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.reward_prompts import RewardPrompts
from mmalign.data.rows import read_pair
from mmalign.engine.choosing import Sampling
from mmalign.engine.rewards import RewardModel
from mmalign.evaluation.answers import Question
from mmalign.evaluation.object_words import read_synonyms
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from mmalign.options.rows import WordingOptions
from tests.data_tools.test_sample_pairs import files_of, save_photos
from tests.tiny_families import FAMILIES
from tests.tiny_models import build_tiny_llava, random_image, random_text

MARKS = (".", "!", "?")
CHECK = "So far: {response}\nIs every statement true of the image? Answer yes or no."


def step(text: str, **changes: Any) -> Step:
    return Step(**{"ids": (5,), "text": text, "logp": -1.0, "tokens": 1, "confidence": 0.0, **changes})


def often_ending(model: Any, processor: Any) -> tuple[Any, Any]:
    """Make a random model end many sentences: where it finds a mark likely, it finds it much likelier than all else."""
    marks = [token for mark in MARKS for token in processor.tokenizer.encode(mark, add_special_tokens=False)]
    with torch.no_grad():
        model.get_output_embeddings().weight[marks] *= 1.5
    return model, processor


def sampler(model: Any, processor: Any, *, actions: int = 3, depth: int = 4, longest: int = 24) -> StepSampler:
    return StepSampler(model, processor, sampling=Sampling(answers=actions), steps="sentences", depth=depth, max_new_tokens=longest)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "qwen3.5"])
def test_steps_end_with_a_sentence_and_depend_on_their_question_alone(family: str) -> None:
    model, processor = often_ending(*FAMILIES[family]())
    prompts, images, seeds = [random_text(i, 2 + i) for i in range(3)], [random_image(i) for i in range(3)], [5, 6, 7]
    draw = sampler(model, processor)
    questions = list(map(draw.read, prompts, images))
    draw.see(questions)
    first = draw({number: Node() for number in range(3)}, seeds)
    begun = {number: next((one for one in first[number] if not one.last), None) for number in range(3)}
    behind = {number: Node(one.ids, one.text, depth=1) for number, one in begun.items() if one is not None}
    assert behind, "a step goes on"
    second = draw(behind, seeds)
    rest = draw({number: replace(node, depth=3) for number, node in behind.items()}, seeds)
    for number, steps in [*first.items(), *second.items()]:
        before = begun[number].ids if steps is second.get(number) else ()
        assert len({one.text for one in steps}) == len(steps) <= 3
        for one in steps:
            assert one.text == processor.decode([*before, *one.ids], skip_special_tokens=True).strip()
            assert one.tokens == len(one.ids) + one.ended
            cut = len(before) + one.tokens == 24
            assert one.last == (one.ended or cut)
            marks = [ends_a_sentence(processor.decode([token])) for token in one.ids]
            assert one.ended or cut or marks[-1]
            assert not any(marks[:-1])
    assert all(len(steps) == 1 and steps[0].last for steps in rest.values())
    assert draw.tokens.keys() == {0, 1, 2}
    alone = sampler(model, processor)
    for number in behind:
        alone.see([questions[number]])
        assert ids(alone({0: Node()}, [seeds[number]])[0]) == ids(first[number])
        assert ids(alone({0: behind[number]}, [seeds[number]])[0]) == ids(second[number])


def ends_a_sentence(text: str) -> bool:
    return "\n" in text or text.rstrip().endswith(MARKS)


def ids(steps: list[Step]) -> list[tuple[int, ...]]:
    return [one.ids for one in steps]


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "qwen3.5"])
def test_confidence_is_the_share_of_yes_in_a_plain_forward(family: str) -> None:
    model, processor = FAMILIES[family]()
    items = [Sampled(Question(f"q{i}", f"{i}.png", "what is it"), None, None, []) for i in range(2)]
    values = AskedValues(model, processor, turns=asking(CHECK))
    values.see(items, [random_image(i) for i in range(2)])
    asked = [(1, "there is a dog."), (0, "there is a cat."), (1, "no star on the left. a dog")]
    got = values([(number, step(text)) for number, text in asked])
    assert [outcome for _, outcome in got] == [0.0] * 3
    for (number, text), (confidence, _) in zip(asked, got, strict=True):
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": CHECK.replace("{response}", text)}]}
        written = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        inputs = processor(text=written, images=random_image(number), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        words = {word: answer_tokens(processor, (word,)) for word in ("yes", "no")}
        chances = logits[[*words["yes"], *words["no"]]].softmax(-1)
        assert confidence == pytest.approx(float(chances[0]), abs=1e-5)
    assert len({confidence for confidence, _ in got}) == 3


def test_a_reward_model_is_asked_in_its_own_words() -> None:
    """The sigmoid of its reward is P(yes) of yes and no behind the conversation so far, by a plain forward."""
    model, processor = build_tiny_llava(seed=3)
    wording = WordingOptions()
    values = RewardValues(RewardModel(model, RewardPrompts(processor, wording)))
    items = [Sampled(Question(f"q{i}", f"{i}.png", f"what is on the {side}"), None, None, []) for i, side in enumerate(("left", "right"))]
    values.see(items, [random_image(i) for i in range(2)])
    asked = [(1, "there is a dog."), (0, "there is a cat."), (1, "no star on the left. a dog")]
    for (number, text), (confidence, outcome) in zip(asked, values([(n, step(text)) for n, text in asked]), strict=True):
        content = [{"type": "image"}, {"type": "text", "text": items[number].question.prompt}]
        said = [("user", content), ("assistant", [{"type": "text", "text": text}]), ("user", [{"type": "text", "text": wording.question}])]
        turns = [{"role": role, "content": parts} for role, parts in said]
        written = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        with torch.no_grad():
            logits = model(**processor(text=written, images=random_image(number), return_tensors="pt")).logits[0, -1]
        tokens = [token for word in wording.answers for token in answer_tokens(processor, (word,))]
        assert confidence == pytest.approx(float(logits[tokens].softmax(-1)[0]), abs=1e-4)
        assert outcome == 0.0


def test_truth_by_hand() -> None:
    words = read_synonyms("dog, puppy\ncar\nbus\n")
    item = Sampled(Question("q", "a.png", "What is there?"), frozenset({"dog", "car"}), None, [])
    values = TruthValues(words)
    values.see([item], [])
    texts = ["A dog.", "A dog and a car.", "A dog and a bus.", "Nothing."]
    assert values([(0, step(text)) for text in texts]) == [(0.5, 1.0), (1.0, 1.0), (0.0, -1.0), (0.0, -1.0)]
    answered = TruthValues(None)
    answered.see([replace(item, answers=("dog", "a dog"))], [])
    assert answered([(0, step("A dog.")), (0, step("A cat."))]) == [(0.0, 1.0), (0.0, -1.0)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    assert mmalign(f"world build --out {out} --num-scenes 4 --num-pairs 4 --num-eval-scenes 4 --num-workers 1".split()) == 0
    # The tiny model's words, so that what it says at random names objects.
    (out / "eval" / "synonyms.txt").write_text("circle\nsquare\ntriangle\nstar\nheart\ncross\nmoon\nring\ndog\ncat\n")
    return out


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "llava"
    model, processor = often_ending(*build_tiny_llava())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_search_on_a_world_feeds_step_dpo_and_resumes_to_the_same_bytes(tmp_path: Path, world: Path, policy: Path) -> None:
    words = (
        f"{world}/eval --model {policy} --value truth --iterations 3 --depth 3 --max-new-tokens 30 --batch-size 2 --dtype float32".split()
    )
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    rows = list(load_rows(tmp_path / "whole" / "pairs"))
    lines = [json.loads(line) for path in sorted((tmp_path / "whole" / "chunks").glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)
    made = [line for line in lines if "chosen" in line]
    assert len(rows) == len(made) > 0
    for row, line in zip(rows, made, strict=True):
        pair = read_pair(row, index=0)
        assert pair.id.endswith(f"/step-{line['depth']}")
        assert (pair.chosen, pair.rejected, [*pair.ends]) == (line["chosen"], line["rejected"], line["ends"])
        assert row["score_chosen"] > row["score_rejected"]
        assert [row["visits_chosen"], row["visits_rejected"]] == line["visits"]
        # Every step before the one that differs is the answer's and ends with a mark.
        same = [len({*texts}) == 1 for texts in zip(pair.chosen, pair.rejected, line["answer"], strict=False)]
        shared = line["answer"][: [*same, False].index(False)]
        assert sum(map(shared.count, MARKS)) >= line["depth"]
    model, processor = build_tiny_llava()
    method = PreferenceMethod(
        processor, PairLossOptions(objective=["step_dpo"]), reference=Reference(model, kind="copy", model=build_tiny_llava(seed=1)[0])
    )
    batch = method.collate(list(method.prepare(load_rows(tmp_path / "whole" / "pairs"))))
    assert torch.isfinite(method.compute(model, batch).loss_sum)
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", stopped)
    shutil.rmtree(stopped / "pairs")
    (stopped / "chunks" / "000000002.jsonl").unlink()
    assert main([*words, "--out", str(stopped)]) == 0
    assert files_of(stopped) == files_of(tmp_path / "whole")


def test_the_policy_judges_itself_and_a_broken_image_is_a_reject(tmp_path: Path, policy: Path) -> None:
    photos = save_photos(tmp_path / "photos", 3)
    (photos / "1.png").write_bytes(b"junk")
    words = f"{photos} --model {policy} --value self --iterations 2 --depth 2 --max-new-tokens 12 --max-reject-share 0.5 --dtype float32"
    assert main([*words.split(), "--prompts", "What do you see?", "--out", str(tmp_path / "out")]) == 0
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["id"] == "1.png/0"
    rows = list(load_rows(tmp_path / "out" / "pairs"))
    assert rows
    assert {row["source"] for row in rows} == {"tree/self"}
    assert all(0 < row["score_rejected"] < row["score_chosen"] < 1 for row in rows if row["id"].endswith("step-0"))
    assert not {"1.png/0/step-0"} & {row["id"] for row in rows}


def test_a_picture_that_the_processor_refuses_is_a_reject(tmp_path: Path) -> None:
    model, processor = FAMILIES["qwen2-vl"]()
    random_image(0).save(tmp_path / "0.png")
    random_image(1, (4, 910)).save(tmp_path / "1.png")
    items = [Sampled(Question(str(i), f"{i}.png", "what"), None, None, [], answers=("a dog",)) for i in range(2)]
    search = TreeSearch(iterations=1, exploration=1.0)
    found = search_chunk(items, sampler(model, processor, longest=6), TruthValues(None), search, image_root=tmp_path, seeds=[1, 2])
    assert all("answer" in line for line in found[0])
    assert "absolute aspect ratio" in found[1][0]["reason"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "truth"}, "--value truth needs a folder with chair.jsonl and synonyms.txt, or an answer for every question"),
        ({"value": "mllm"}, "--value mllm or reward and --labeler MODEL go together"),
        ({"value": "self", "labeler": "x"}, "--value mllm or reward and --labeler MODEL go together"),
        ({"actions": 1}, "actions is 1; expected at least 2"),
        ({"depth": 1}, "depth is 1; expected at least 2"),
        ({"top_k": -1}, "top_k is -1; expected at least 0"),
        ({"iterations": 0}, "iterations is 0; expected at least 1"),
        ({"exploration": float("nan")}, "exploration is nan; expected a finite number"),
        ({"check": "Is it true?"}, "check is 'Is it true\\?'; expected a question with {response}"),
        ({"value": "truth", "check": CHECK + "!"}, "--check is what --value self and mllm ask; leave it out with --value truth"),
        ({"prompts": []}, "say what to ask about each with --prompts"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, tiny_llava_dir: Path, changes: dict[str, Any], message: str) -> None:
    photos = save_photos(tmp_path / "photos", 1)
    given = {"source": photos, "out": tmp_path / "out", "model": str(tiny_llava_dir), "value": "self", "prompts": ["Hm?"], **changes}
    with pytest.raises(ValueError, match=message):
        run(Options(**given))


def test_a_prompt_that_is_read_in_both_directions_is_refused() -> None:
    with pytest.raises(ValueError, match="PaliGemma's prompt is read in both directions"):
        sampler(*FAMILIES["paligemma"]())


def test_a_model_without_words_for_yes_and_no_is_refused() -> None:
    _, processor = build_tiny_llava()
    with pytest.raises(ValueError, match="the tokenizer writes none of zebra as one token"):
        answer_tokens(processor, ("zebra",))
