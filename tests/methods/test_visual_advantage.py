"""Distillation weighed by visual advantage, against full logits of the teacher on both images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.data.messages import text_of
from mmalign.data.rows import read_chat
from mmalign.data.weaken import weaken_row
from mmalign.losses.visual_advantage import answer_weights, group_weights
from mmalign.options.methods import MimicLossOptions, MimicOptions
from tests.methods.test_mimic import assert_same_gradients, build_method, gradients, plain_logits
from tests.methods.test_on_policy import complete
from tests.methods.test_router import chats
from tests.tiny_families import fastvlm
from tests.tiny_models import build_tiny_llava


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def weakened(raw: dict[str, Any], kind: Any) -> dict[str, Any]:
    row = read_chat(raw, index=0)
    images = weaken_row(row.images, kind, seed=3, row="\n".join(map(text_of, row.messages)))
    return {**raw, "images": images}


@pytest.mark.parametrize("mode", ["tokens", "answers", "both"])
@pytest.mark.parametrize(("kind", "family"), [("noise", None), ("none", None), ("blank", fastvlm)], ids=["noise", "none", "another-family"])
def test_loss_and_gradients_are_those_of_full_logits(mode: Any, kind: Any, family: Any) -> None:
    """One row has no image: its tokens weigh 1."""
    (student, processor), (teacher, other) = build_tiny_llava(), (family() if family else build_tiny_llava(seed=1, scale=1.0))
    method = build_method(
        student, processor, teacher, other, visual_advantage=mode, visual_share=0.3, weaken=kind, weaken_seed=3, ce_weight=0.2
    )
    bare = {"images": [], "messages": chats(4)[3]["messages"]}
    raw = [*chats(3), bare]
    output = method.compute(student, method.collate(raw))
    got = gradients(student, output.loss_sum)
    expected, tops, every = torch.zeros(()), [], []
    for row in raw:
        own, target = plain_logits(student, processor, row)
        with torch.no_grad():
            taught, _ = plain_logits(teacher, other, row)
            without, _ = plain_logits(teacher, other, weakened(row, kind))
        places = torch.arange(len(target)), target
        advantage = taught.log_softmax(-1)[places] - without.log_softmax(-1)[places]
        one = torch.zeros(len(target), dtype=torch.long)
        weights, top = group_weights(advantage, one, num_answers=1, share=0.3)
        weights = weights if mode != "answers" else torch.ones_like(weights)
        weights = weights * answer_weights(advantage, one, num_answers=1) if mode != "tokens" else weights
        if row["images"]:
            tops.append(advantage[top])
            every.append(advantage)
        else:
            weights = torch.ones_like(weights)
        nll = -own.log_softmax(-1)[places].sum()
        size = method.teacher.vocabulary
        expected = expected + (weights * kl(taught[:, :size], own[:, :size])).sum() + 0.2 * nll
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert_same_gradients(got, gradients(student, expected))
    for name, values in (("top", torch.cat(tops)), ("mean", torch.cat(every))):
        metric = output.metrics[f"visual_advantage/{name}"]
        assert metric.count == len(values)
        assert float(metric.total) == pytest.approx(values.sum().item(), rel=1e-3, abs=1e-5)
    assert torch.cat(every).abs().max() > 1e-3, "the image matters"


@pytest.mark.parametrize("mode", ["tokens", "answers"])
def test_packed_rows_give_the_same_loss(mode: Any) -> None:
    """A chat without an image is the first of the data, and not of its packed row."""
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1, scale=1.0)
    raw = chats(4)
    raw[0] = {"images": [], "messages": raw[0]["messages"]}
    outputs = []
    for packing in ({}, {"row_tokens": 64}):
        method = build_method(student, processor, teacher, visual_advantage=mode, visual_share=0.3, weaken="noise", **packing)
        outputs.append(method.compute(student, method.collate(raw)))
    torch.testing.assert_close(outputs[1].loss_sum, outputs[0].loss_sum, rtol=1e-5, atol=0)
    assert {name: one.count for name, one in outputs[0].metrics.items()} == {name: one.count for name, one in outputs[1].metrics.items()}


def test_sampled_answers_are_weighed_by_both_images_too() -> None:
    """A teacher that sees the same image twice finds no advantage in what the student says, and weighs answers alike."""
    (student, processor), (teacher, _) = build_tiny_llava(scale=1.0), build_tiny_llava(seed=1, scale=1.0)
    raw = chats(4)
    values = {}
    for mode in ("off", "answers"):
        method = build_method(student, processor, teacher, visual_advantage=mode, on_policy=0.5, sample_tokens=5, weaken="noise")
        batch = complete(method, student, raw)
        if mode == "answers":
            assert batch["weakened"]["input_ids"].tolist() == batch["input_ids"].tolist()
            assert not torch.equal(batch["weakened"]["images"]["pixel_values"], batch["images"]["pixel_values"])
            batch["weakened"]["images"] = batch["images"]
        values[mode] = method.compute(student, batch).loss_sum.item()
    assert values["answers"] == pytest.approx(values["off"], rel=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="visual_share is 1; expected a share"):
        MimicLossOptions(visual_share=1)
    with pytest.raises(ValueError, match="leave --legacy-mask and --distil all out"):
        MimicLossOptions(visual_advantage="both", legacy_mask=True)
    with pytest.raises(ValueError, match="--teacher cached has seen no weakened images"):
        MimicOptions(model="a", data=[Path("b")], out=Path("c"), teacher=["cached"], visual_advantage="tokens")
