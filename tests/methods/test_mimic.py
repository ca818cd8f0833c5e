"""Mimic distillation against full logits of both models, across families, on sparse students; its mask, its vocabulary, what it refuses."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import read_chat
from mmalign.engine import head
from mmalign.engine.batch import collate_prompts
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.teachers import LiveTeacher
from mmalign.models.references import Reference
from mmalign.options.methods import DivergenceOptions, MimicLossOptions, MimicOptions
from mmalign.options.training import RouterOptions
from mmalign.training.method import MethodOutput
from mmalign.training.router import RouterLosses
from mmalign.worlds.tokenizer import train_tokenizer
from tests.methods.test_router import build_sparse, chats
from tests.tiny_families import fastvlm, qwen2_5_vl
from tests.tiny_models import QWEN3, build_tiny_llava

KINDS = [
    DivergenceOptions(),
    DivergenceOptions(temperature=2.0),
    DivergenceOptions(divergence="reverse-kl"),
    DivergenceOptions(divergence="js", temperature=1.5),
]


def build_method(
    student: PreTrainedModel, processor: Any, teacher: PreTrainedModel, teacher_processor: Any | None = None, **options: Any
) -> MimicMethod:
    live = LiveTeacher(
        Reference(student, kind="copy", model=teacher), teacher_processor or processor, student=student, student_processor=processor
    )
    return MimicMethod(processor, MimicLossOptions(**options), teacher=live)


def plain_logits(model: PreTrainedModel, processor: Any, raw: dict[str, Any], *, late: int = 0) -> tuple[Tensor, Tensor]:
    """One unpadded row, the model's own forward: logits that predict the scored tokens, and those tokens."""
    encoded = encode_chat(processor, read_chat(raw, index=0))
    (response,), (scored,) = encoded.responses, encoded.scored
    ids = torch.tensor([encoded.prefix_ids + response])
    types = {key: torch.tensor([value + [0] * len(response)]) for key, value in encoded.token_types.items()}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **encoded.images, **types).logits[0]
    start = len(encoded.prefix_ids)
    places = torch.tensor([start + i for i, counted in enumerate(scored) if counted])
    return logits[places - 1 + late], ids[0, places]


def all_logits(model: PreTrainedModel, processor: Any, raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The same, of every token but the first and those of images, known by their id."""
    encoded = encode_chat(processor, read_chat(raw, index=0))
    ids = torch.tensor([encoded.prefix_ids + encoded.responses[0]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **encoded.images).logits[0]
    places = (ids[0] != processor.tokenizer.convert_tokens_to_ids(processor.image_token)).nonzero()[:, 0]
    places = places[places > 0]
    return logits[places - 1], ids[0, places]


def plain_divergence(teacher: Tensor, student: Tensor, kind: DivergenceOptions) -> Tensor:
    """By torch's kl_div, and the definition of each divergence."""
    log_p, log_q = ((logits / kind.temperature).log_softmax(-1) for logits in (teacher, student))

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return F.kl_div(b, a, log_target=True, reduction="sum")

    if kind.divergence == "forward-kl":
        return kl(log_p, log_q)
    if kind.divergence == "reverse-kl":
        return kl(log_q, log_p)
    log_m = (0.5 * (log_p.exp() + log_q.exp())).log()
    return 0.5 * kl(log_p, log_m) + 0.5 * kl(log_q, log_m)


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    assert norm > 1e-3
    for name, grad in expected.items():
        assert (got[name] - grad).norm() < 1e-5 * norm, name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.divergence}-{kind.temperature}")
def test_loss_and_gradients_are_those_of_full_logits(kind: DivergenceOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded batch and chunks of a few tokens, against plain rows, all logits, torch's kl_div and cross_entropy."""
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 3 * 512)
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    method = build_method(student, processor, teacher, **vars(kind), kl_weight=0.7, ce_weight=0.3)
    batch = method.collate(chats())
    assert not batch["attention_mask"].all(), "some tokens are padding"
    output = method.compute(student, batch)
    got = gradients(student, output.loss_sum)
    pieces = []
    for raw in chats():
        own, target = plain_logits(student, processor, raw)
        with torch.no_grad():
            taught, _ = plain_logits(teacher, processor, raw)
        pieces.append((plain_divergence(taught, own, kind), F.cross_entropy(own, target, reduction="sum")))
    divergence, nll = (torch.stack(values).sum() for values in zip(*pieces, strict=True))
    expected = 0.7 * kind.temperature**2 * divergence + 0.3 * nll
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert float(output.metrics["loss/kl"].total) == pytest.approx(divergence.item(), rel=1e-5)
    assert float(output.metrics["loss/nll"].total) == pytest.approx(nll.item(), rel=1e-5)
    assert output.metrics["loss/kl"].count == method.num_items(batch) == sum(len(plain_logits(student, processor, r)[1]) for r in chats())
    assert_same_gradients(got, gradients(student, expected))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_all_text_is_that_of_full_logits() -> None:
    """Prompts count, images do not; a prompt's first word is predicted where its image ends."""
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    method = build_method(student, processor, teacher, distil="all", ce_weight=0.3)
    batch = method.collate(chats())
    output = method.compute(student, batch)
    got = gradients(student, output.loss_sum)
    expected, count = torch.zeros(()), 0
    for raw in chats():
        own, target = all_logits(student, processor, raw)
        with torch.no_grad():
            taught, _ = all_logits(teacher, processor, raw)
        expected = expected + plain_divergence(taught, own, DivergenceOptions()) + 0.3 * F.cross_entropy(own, target, reduction="sum")
        count += len(target)
    assert method.num_items(batch) == count > len(build_method(student, processor, teacher).collate(chats())["layout"]["target"])
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert_same_gradients(got, gradients(student, expected))
    assert "largest difference" in method.start(student, chats())


def test_the_mean_is_over_all_that_is_compared() -> None:
    """Two chats of 3 and 2 response tokens with divergences .2 .1 .3 and .4 .0, and 2 prompt tokens each of .6: .2, or 3.4 / 9."""
    encoded = [EncodedPrompt([1, 5, 6], [[7] * number], [[True] * number], {}, {}, scored_prefix=[False, True, True]) for number in (3, 2)]
    divergence = torch.full((2, 8), 9.0)
    divergence[0, :5], divergence[1, :4] = torch.tensor([0.6, 0.6, 0.2, 0.1, 0.3]), torch.tensor([0.6, 0.6, 0.4, 0.0])
    for prompts, mean in ((encoded, 0.377777777778), ([dataclasses.replace(one, scored_prefix=[]) for one in encoded], 0.2)):
        index = collate_prompts(prompts, pad_token_id=0)["layout"]["index"]
        assert float(divergence.flatten()[index].mean()) == pytest.approx(mean, abs=1e-7)


def test_a_teacher_with_other_words_before_the_answer_is_refused() -> None:
    (student, processor), (teacher, other) = build_tiny_llava(), build_tiny_llava(seed=1)
    other.chat_template = "a " + other.chat_template
    build_method(student, processor, teacher, other).check(chats(1)[0], index=0)
    method = build_method(student, processor, teacher, other, distil="all")
    with pytest.raises(ValueError, match=r"token 0 of the prompt is \d+ to the student and \d+ to the teacher"):
        method.check(chats(1)[0], index=0)


def test_a_cached_teacher_knows_responses_alone() -> None:
    with pytest.raises(ValueError, match="--teacher cached knows response tokens alone"):
        MimicOptions(model="a", data=[Path("b")], out=Path("c"), teacher=["cached"], distil="all")


def test_value_by_hand() -> None:
    """Heads that say the same of every token: p = softmax(ln 3, 0, 0, ...), q uniform over the 512 tokens.

    p has 3/514 on the first token and 1/514 on each of the others, so that KL = 3/514 ln(3 512/514) + 511/514 ln(512/514).
    """
    llm = {**QWEN3, "tie_word_embeddings": False}
    (student, processor), (teacher, _) = build_tiny_llava(llm=llm), build_tiny_llava(llm=llm, seed=1)
    for model in (student, teacher):
        model.lm_head.weight.data.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(512))
    teacher.lm_head.bias.data[0] = math.log(3)
    method = build_method(student, processor, teacher)
    metric = method.compute(student, method.collate(chats())).metrics["loss/kl"]
    expected = 3 / 514 * math.log(3 * 512 / 514) + 511 / 514 * math.log(512 / 514)
    assert float(metric.total) / metric.count == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.divergence}-{kind.temperature}")
def test_a_teacher_of_oneself_costs_nothing(kind: DivergenceOptions) -> None:
    (student, processor), (twin, _) = build_tiny_llava(), build_tiny_llava()
    method = build_method(student, processor, twin, **vars(kind))
    output = method.compute(student, method.collate(chats()))
    assert output.loss_sum.item() == pytest.approx(0, abs=1e-4)
    assert max(grad.abs().max() for grad in gradients(student, output.loss_sum).values()) < 1e-3


@pytest.mark.parametrize("build", [fastvlm, qwen2_5_vl])
def test_a_teacher_of_another_family_reads_its_own_pixels(build: Any) -> None:
    """Another tower, another number of image tokens, on three axes' positions even: the answers' tokens are what both share."""
    (student, processor), (teacher, other) = build_tiny_llava(), build()
    method = build_method(student, processor, teacher, other)
    raw = chats()
    for row in raw:
        method.check(row, index=0)
    batch = method.collate(raw)
    assert batch["teacher"]["input_ids"].shape != batch["input_ids"].shape
    output = method.compute(student, batch)
    expected = torch.zeros(())
    for row in raw:
        own, target = plain_logits(student, processor, row)
        with torch.no_grad():
            taught, theirs = plain_logits(teacher, other, row)
        assert torch.equal(target, theirs)
        size = method.teacher.vocabulary
        expected = expected + plain_divergence(taught[:, :size], own[:, :size], DivergenceOptions())
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(student, output.loss_sum), gradients(student, expected))


@pytest.mark.parametrize("sizes", [(512, 640), (640, 512)], ids=["longer-teacher", "longer-student"])
def test_padding_rows_are_cut_and_both_sum_to_one_again(sizes: tuple[int, int]) -> None:
    (student, processor), (teacher, _) = (build_tiny_llava(llm={**QWEN3, "vocab_size": size}, seed=seed) for seed, size in enumerate(sizes))
    method = build_method(student, processor, teacher)
    assert method.teacher.vocabulary == 512
    output = method.compute(student, method.collate(chats()))
    expected = torch.zeros(())
    for raw in chats():
        own, _ = plain_logits(student, processor, raw)
        with torch.no_grad():
            taught, _ = plain_logits(teacher, processor, raw)
        assert {own.shape[1], taught.shape[1]} == {512, 640}
        expected = expected + plain_divergence(taught[:, :512], own[:, :512], DivergenceOptions())
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(student, output.loss_sum), gradients(student, expected))


def test_other_tokens_and_other_templates_are_refused() -> None:
    (student, processor), (teacher, other) = build_tiny_llava(), build_tiny_llava(seed=1)
    kept, other.tokenizer = other.tokenizer, train_tokenizer(["a zebra and a zeppelin"] * 3)
    names = [{i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in (kept, other.tokenizer)]
    first = next(i for i in sorted(names[0]) if names[0][i] != names[1].get(i))
    message = f"of 512 and 512 rows of their output heads the first {first} agree, and id {first} is {names[0][first]!r} to the student"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_method(student, processor, teacher, other)
    other.tokenizer = kept
    other.chat_template = other.chat_template.replace("</s>", "<s>")
    method = build_method(student, processor, teacher, other)
    with pytest.raises(ValueError, match=r"token \d+ of the answer is 2 to the student and 1 to the teacher: their chat templates differ"):
        method.check(chats(1)[0], index=0)


def test_no_response_token_is_a_loss_of_zero() -> None:
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    method = build_method(student, processor, teacher, ce_weight=1.0)
    batch = method.collate(chats())
    batch["layout"] |= {key: batch["layout"][key][:0] for key in ("index", "target", "response")}
    assert method.num_items(batch) == 0
    output = method.compute(student, batch)
    assert output.loss_sum.item() == 0
    found = gradients(student, output.loss_sum)
    assert found
    assert all(grad.isfinite().all() and not grad.any() for grad in found.values())


def test_the_released_codes_mask_is_one_place_late() -> None:
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    right, late = (build_method(student, processor, teacher, legacy_mask=legacy) for legacy in (False, True))
    values: list[MethodOutput] = [method.compute(student, method.collate(chats())) for method in (right, late)]
    with torch.no_grad():
        for output, shift in zip(values, (0, 1), strict=True):
            expected = sum(
                plain_divergence(
                    plain_logits(teacher, processor, raw, late=shift)[0],
                    plain_logits(student, processor, raw, late=shift)[0],
                    DivergenceOptions(),
                )
                for raw in chats()
            )
            assert output.loss_sum.item() == pytest.approx(float(expected), rel=1e-5)
    found = [gradients(student, output.loss_sum)["model.language_model.embed_tokens.weight"] for output in values]
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()


def test_a_sparse_student_of_a_dense_teacher_gets_router_losses_and_the_teacher_none() -> None:
    sparse, processor = build_sparse()
    teacher, _ = build_tiny_llava(seed=1, scale=1.0)
    method = build_method(sparse, processor, teacher, ce_weight=1.0)
    batch = method.collate(chats())
    plain = method.compute(sparse, batch)
    routed = RouterLosses(RouterOptions(balance_weight=0.5)).compute(method, sparse, batch)
    balance = routed.metrics["router/balance"]
    added = 0.5 * 2 * float(balance.total / balance.count) * method.num_items(batch)
    assert routed.loss_sum.item() == pytest.approx(plain.loss_sum.item() + added, rel=1e-5)
    # A sparse teacher's routers don't disturb those of the student.
    taught = build_method(sparse, processor, build_sparse()[0])
    assert "router/balance" in RouterLosses(RouterOptions()).compute(taught, sparse, taught.collate(chats())).metrics


@pytest.mark.parametrize("options", [{"ce_weight": 0.3}, {"distil": "all"}, {"legacy_mask": True}], ids=lambda options: next(iter(options)))
def test_packed_rows_give_the_same_loss_and_gradients(options: dict[str, Any]) -> None:
    """Where the teacher reads the student's rows and where it reads its own; a chat without an image lies between two with one."""
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    rows = chats(4)
    rows[1] = {"images": [], "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two cats."}]}
    outputs = []
    for packing in ({}, {"row_tokens": 64}, {"row_tokens": 10_000}):
        method = build_method(student, processor, teacher, **options, **packing)
        batch = method.collate(rows)
        outputs.append((len(batch["input_ids"]), method.compute(student, batch).loss_sum))
    lengths, losses = zip(*outputs, strict=True)
    assert lengths[0] == 4 > lengths[1] > lengths[2] == 1
    expected = gradients(student, losses[0])
    assert expected
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=0)
        assert_same_gradients(gradients(student, loss), expected)


def test_a_teacher_of_its_own_rows_is_not_packed() -> None:
    """It may be of a family that can't be."""
    (student, processor), (teacher, other) = build_tiny_llava(), fastvlm()
    taught = [build_method(student, processor, teacher, other, **packing) for packing in ({}, {"row_tokens": 10_000})]
    batches = [method.collate(chats()) for method in taught]
    assert [len(batch["teacher"]["input_ids"]) for batch in batches] == [3, 3]
    losses = [method.compute(student, batch).loss_sum for method, batch in zip(taught, batches, strict=True)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


def test_a_row_that_is_too_long_is_refused_and_weights_make_sense() -> None:
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    method = build_method(student, processor, teacher, max_length=5)
    with pytest.raises(ValueError, match="more than max_length 5"):
        method.check(chats(1)[0], index=0)
    with pytest.raises(ValueError, match="kl_weight is 0"):
        MimicLossOptions(kl_weight=0)
    with pytest.raises(ValueError, match="ce_weight is -1"):
        dataclasses.replace(MimicLossOptions(), ce_weight=-1)
