"""Answers that are cut inside the assistant's turn teach nothing about where it ends."""

from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature

from mmalign.data.caches import digest_text
from mmalign.data.encode import encode_row
from mmalign.data.rows import read_pair
from mmalign.engine.probe import own_logps
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from tests.tiny_models import QWEN3, build_tiny_llava, pair_rows

STEPS = {"chosen": "there is a red star.", "rejected": "there is a blue circle on the table."}


def step_rows(**columns: Any) -> list[dict[str, Any]]:
    """A pair that differs in its second step; the mark that ends it stands nowhere else."""
    texts = {name: [{"role": "assistant", "content": text}] for name, text in STEPS.items()}
    return [{**pair_rows(1)[0], **texts, "visits_chosen": 3.0, "visits_rejected": 1.0, **columns}]


def end_logps(policy: Any, processor: Any) -> list[float]:
    """Log P(end of turn) where each answer is cut."""
    encoded = encode_row(processor, read_pair(step_rows()[0], index=0))
    end = processor.tokenizer.eos_token_id
    with torch.no_grad():
        return [float(logps[ids.index(end)]) for ids, logps in zip(encoded.responses, own_logps(policy, encoded), strict=True)]


def change_of_end(**columns: Any) -> list[float]:
    """How log P(end of turn) at the cuts changes in one step of training that nothing but the input of the last mark follows."""
    (policy, processor), (copy, _) = (build_tiny_llava(seed=0, llm={**QWEN3, "tie_word_embeddings": False}) for _ in range(2))
    method = PreferenceMethod(processor, PairLossOptions(objective=["step_dpo"]), reference=Reference(policy, kind="copy", model=copy))
    rows = Dataset.from_list(step_rows(**columns)).cast_column("images", List(ImageFeature(decode=False)))
    before = end_logps(policy, processor)
    method.compute(policy, method.collate(list(method.prepare(rows)))).loss_sum.backward()
    (mark,) = processor.tokenizer.encode(".")
    words = policy.get_input_embeddings().weight
    with torch.no_grad():
        words[mark] -= 0.1 * words.grad[mark]
    return [after - start for after, start in zip(end_logps(policy, processor), before, strict=True)]


def test_a_step_pair_leaves_the_end_of_turn_at_the_cut_unchanged() -> None:
    """At the cut, the answer is what ends in the mark: without an end of turn nothing is predicted there, and it has no gradient.

    With one, the chosen step is taught to end the turn, and the rejected one not to.
    """
    assert change_of_end(ends_chosen=False, ends_rejected=False) == [0.0, 0.0]
    chosen, rejected = change_of_end()
    assert chosen > 1e-5
    assert rejected < -1e-5


@pytest.mark.parametrize(("ends", "cut"), [((True, True), 0), ((False, True), 1), ((True, False), 1), ((False, False), 2)])
def test_the_end_of_turn_is_left_out_of_what_is_scored_and_cached(ends: tuple[bool, bool], cut: int) -> None:
    _, processor = build_tiny_llava()
    whole = encode_row(processor, read_pair(step_rows()[0], index=0))
    encoded = encode_row(processor, read_pair(step_rows(ends_chosen=ends[0], ends_rejected=ends[1])[0], index=0))
    end = processor.tokenizer.eos_token_id
    assert [end in ids for ids in encoded.responses] == [*ends]
    for ids, scored, all_ids, kept in zip(encoded.responses, encoded.scored, whole.responses, ends, strict=True):
        assert all(scored)
        assert ids == (all_ids if kept else all_ids[: all_ids.index(end)])
    assert (digest_text(encoded) == digest_text(whole)) == (cut == 0)
