"""Rewards of every family against plain forwards of whole conversations; how the words are found, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.data.reward_prompts import RewardPrompts
from mmalign.data.rows import ListRow, Message, PairRow, read_list, read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.rewards import RewardModel, compute_rewards, read_wording
from mmalign.errors import UserError
from mmalign.files import RUN_FILE
from mmalign.options.rows import WordingOptions
from tests.tiny_families import FAMILIES, PLAIN_ROWS
from tests.tiny_models import build_tiny_llava, list_rows, pair_rows, random_image

WORDING = WordingOptions(question="is there a dog yes or no")
REFUSED = {"paligemma", "paligemma2"}


def plain_reward(model: Any, processor: Any, row: PairRow | ListRow, response: str, wording: WordingOptions = WORDING) -> float:
    """By the stock processor and the model's own logits behind the generation prompt, with the words that follow ``ASSISTANT:``."""
    turns = [("assistant", response), ("user", wording.question)]
    messages = [*row.prompt, *({"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns)]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[row.images] if row.images else None, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].float()
    right, wrong = (processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in wording.answers)
    return float(logits[right] - logits[wrong])


def rows_and_responses() -> tuple[list[PairRow | ListRow], list[list[str]]]:
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(2))]
    (longer,) = (read_list(raw, index=i, sampled=True) for i, raw in enumerate(list_rows([4], seed=7)))
    text_alone = PairRow("t", [], [Message(role="user", content=[{"type": "text", "text": "what do you see"}])], "a dog", "no", "all")
    rows: list[PairRow | ListRow] = [*pairs, longer, text_alone]
    return rows, [[row.chosen, row.rejected] if isinstance(row, PairRow) else row.responses for row in rows]


@pytest.mark.parametrize("name", FAMILIES)
def test_rewards_are_those_of_plain_forwards(name: str) -> None:
    model, processor = FAMILIES[name]()
    if name in REFUSED:
        with pytest.raises(UserError, match="PaliGemma has no second turn"):
            RewardPrompts(processor, WORDING)
        return
    rows, responses = rows_and_responses()
    scorer = RewardModel(model.eval(), RewardPrompts(processor, WORDING), batch_size=3)
    found = scorer(rows, responses)
    assert scorer.shared is (name not in PLAIN_ROWS)
    for row, texts, rewards in zip(rows, responses, found, strict=True):
        expected = [plain_reward(model, processor, row, text) for text in texts]
        assert rewards == pytest.approx(expected, abs=2e-5)
        assert max(expected) - min(expected) > 1e-3, "responses whose rewards are alike show nothing"


def test_layouts_have_the_same_rewards_and_gradients() -> None:
    model, processor = build_tiny_llava()
    prompts = RewardPrompts(processor, WORDING)
    encoded = [
        prompts.encode(images=row.images, prompt=row.prompt, responses=texts) for row, texts in zip(*rows_and_responses(), strict=True)
    ]
    found = {}
    for name, layout in {"plain": {"shared": False}, "shared": {"shared": True}, "packed": {"row_tokens": 200}}.items():
        model.zero_grad()
        rewards = compute_rewards(model, collate_prompts(encoded, pad_token_id=0, **layout), prompts.answers)
        (rewards * torch.linspace(-1, 1, len(rewards))).sum().backward()
        found[name] = rewards.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for name in ("shared", "packed"):
        torch.testing.assert_close(found[name][0], found["plain"][0], rtol=0, atol=2e-5)
        assert (found[name][1] - found["plain"][1]).norm() < 1e-4 * found["plain"][1].norm()


def test_a_begun_answer_is_scored_whole_and_equal_responses_alike() -> None:
    model, processor = build_tiny_llava()
    scorer = RewardModel(model, RewardPrompts(processor, WORDING))
    (row,) = (read_pair(raw, index=0) for raw in pair_rows(1))
    begun = PairRow(
        row.id, row.images, [*row.prompt, Message(role="assistant", content=[{"type": "text", "text": "there is "}])], "a", "b", ""
    )
    whole = scorer([row], [["there is a dog"]])[0]
    assert scorer([begun], [["a dog", "a dog"]])[0] == pytest.approx(whole * 2, abs=1e-5)


def test_words_that_are_not_one_token_each_are_refused() -> None:
    _, processor = build_tiny_llava()
    with pytest.raises(UserError, match="the answers yes and certainly not are not one token each .* choose others with --answers"):
        RewardPrompts(processor, WordingOptions(answers=["yes", "certainly not"]))
    for words in (["yes", "yes"], ["yes"], ["yes", " "]):
        with pytest.raises(UserError, match="expected two words, the one for right first"):
            WordingOptions(answers=words)
    with pytest.raises(UserError, match="question has no words"):
        WordingOptions(question=" ")


def test_rows_that_can_not_be_read_are_refused() -> None:
    _, processor = build_tiny_llava()
    prompts = RewardPrompts(processor, WORDING)
    prompt = [Message(role="user", content=[{"type": "image"}, {"type": "text", "text": "what"}])]
    with pytest.raises(UserError, match="the text of the assistant holds <image>"):
        prompts.encode(images=[random_image(0)], prompt=prompt, responses=["an <image>"])
    with pytest.raises(UserError, match="more than max_length 10"):
        prompts.encode(images=[random_image(0)], prompt=prompt, responses=["a dog"], max_length=10)


def test_the_wording_is_the_runs_unless_another_is_given(tmp_path: Path) -> None:
    assert read_wording("org/stock-model") == WordingOptions()
    record = {"method": "reward", "options": {"question": "right?", "answers": ["no", "yes"]}}
    (tmp_path / RUN_FILE).write_text(json.dumps(record))
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "checkpoints" / "checkpoint-1"):
        assert read_wording(str(folder)) == WordingOptions(question="right?", answers=["no", "yes"])
    assert read_wording(str(tmp_path), question="true?") == WordingOptions(question="true?", answers=["no", "yes"])
    assert read_wording(str(tmp_path), answers=["a", "b"]) == WordingOptions(question="right?", answers=["a", "b"])
    (tmp_path / RUN_FILE).write_text(json.dumps({**record, "method": "sft", "options": {}}))
    assert read_wording(str(tmp_path)) == WordingOptions()
