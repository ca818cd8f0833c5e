"""Distillation on the student's own answers, against plain rows of what it said; what it may say, and what each draw depends on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmalign.data.encode import EncodedPrompt, encode_chat, encode_questions, image_token_ids
from mmalign.data.last_answer import question_of, with_answer
from mmalign.data.rows import read_chat
from mmalign.engine.prefix import joined
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.sampling import draw
from mmalign.models.adapters import add_lora
from mmalign.options.methods import DivergenceOptions, MimicLossOptions, MimicOptions
from mmalign.options.training import LoraOptions, RouterOptions
from mmalign.training.router import RouterLosses
from tests.methods.test_mimic import KINDS, assert_same_gradients, build_method, gradients, plain_divergence
from tests.methods.test_router import build_sparse, chats
from tests.tiny_families import fastvlm, paligemma, qwen2_5_vl
from tests.tiny_models import QWEN3, build_tiny_llava, random_image


def complete(method: MimicMethod, model: Any, rows: list[dict[str, Any]], *, step: int = 0) -> dict[str, Any]:
    return method.complete(model, method.collate(rows), step=step)


def two_turns() -> dict[str, Any]:
    texts = ["a cat", "the dog sat", "a bird and a cat", "on the red mat"]
    roles = ["user", "assistant"] * 2
    return {"images": [random_image(7)], "messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]}


def whole_rows(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Each row's ids without padding, and the places of its scored tokens."""
    width, index = batch["input_ids"].shape[1], batch["layout"]["index"]
    rows = []
    for number, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        own = index[index // width == number] - number * width + 1
        rows.append((ids[mask.bool()].tolist(), own.tolist()))
    return rows


def question(processor: Any, raw: dict[str, Any]) -> list[int]:
    """What a stock processor makes of the turns before the last answer."""
    prompt = encode_questions(processor, images=raw["images"], prompts=[read_chat(raw, index=0).messages[:-1]])
    return [*prompt.prefix_ids, *prompt.responses[0]]


def plain_logits(model: PreTrainedModel, processor: Any, raw: dict[str, Any], ids: list[int]) -> Tensor:
    """The model's own forward on one row of these ids."""
    encoded = encode_chat(processor, read_chat(raw, index=0))
    row = torch.tensor([ids])
    types = {key: torch.tensor([value + [0] * (len(ids) - len(value))]) for key, value in encoded.token_types.items()}
    return model(input_ids=row, attention_mask=torch.ones_like(row), **encoded.images, **types).logits[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.divergence}-{kind.temperature}")
def test_loss_and_gradients_are_those_of_full_logits_on_what_was_said(kind: DivergenceOptions) -> None:
    """Half of the rows are sampled; cross-entropy is of the others alone."""
    (student, processor), (teacher, _) = build_tiny_llava(scale=1.0), build_tiny_llava(seed=1, scale=1.0)
    method = build_method(student, processor, teacher, **vars(kind), on_policy=0.5, sample_tokens=5, kl_weight=0.7, ce_weight=0.3)
    raw = [*chats(5), two_turns()]
    batch = complete(method, student, raw, step=4)
    data = build_method(student, processor, teacher).collate(raw)
    output = method.compute(student, batch)
    got = gradients(student, output.loss_sum)
    divergence, nll, sampled = torch.zeros(()), torch.zeros(()), []
    for row, (ids, places), (given, scored) in zip(raw, whole_rows(batch), whole_rows(data), strict=True):
        own = plain_logits(student, processor, row, ids)
        with torch.no_grad():
            taught = plain_logits(teacher, processor, row, ids)
        before = [place - 1 for place in places]
        divergence = divergence + plain_divergence(taught[before], own[before], kind)
        kept = places
        if ids != given:
            # Answers before the last one are the data's.
            kept = [place for place in places if place < len(question(processor, row))]
            sampled.append(len(places) - len(kept))
        else:
            assert places == scored
        targets = torch.tensor([ids[place] for place in kept], dtype=torch.long)
        nll = nll + F.cross_entropy(own[[place - 1 for place in kept]], targets, reduction="sum") if kept else nll
    expected = 0.7 * kind.temperature**2 * divergence + 0.3 * nll
    assert 0 < len(sampled) < len(raw), "some rows are sampled and others not"
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert_same_gradients(got, gradients(student, expected))
    assert float(output.metrics["loss/nll"].total) == pytest.approx(nll.item(), rel=1e-5)
    length = output.metrics["on_policy/length"]
    assert (float(length.total), length.count) == (sum(sampled), len(sampled))
    assert method.num_items(batch) == sum(len(places) for _, places in whole_rows(batch))


def test_answers_at_a_low_temperature_are_the_likeliest_ones() -> None:
    """Against the likeliest token of whole rows, one by one; an answer holds no image, and nothing that the teacher doesn't know."""
    (student, processor), (teacher, _) = (build_tiny_llava(llm={**QWEN3, "vocab_size": size}, scale=1.0) for size in (640, 512))
    method = build_method(student, processor, teacher, on_policy=1.0, sample_tokens=6, sample_temperature=1e-4)
    images = image_token_ids(processor)
    student.get_output_embeddings().weight.data[[*images, 600]] *= 30.0
    raw = [*chats(3), two_turns()]
    for row, (ids, places) in zip(raw, whole_rows(complete(method, student, raw)), strict=True):
        said = question(processor, row)
        start = len(said)
        while len(said) < start + 6 and (len(said) == start or said[-1] != processor.tokenizer.eos_token_id):
            with torch.no_grad():
                logits = plain_logits(student, processor, row, said)[-1]
            logits[[*images, *range(512, 640)]] = -torch.inf
            said.append(int(logits.argmax()))
        assert ids == said
        assert places[-(len(said) - start) :] == list(range(start, len(said)))


def test_an_answer_that_ends_ends_with_its_scored_end() -> None:
    (student, processor), (teacher, _) = build_tiny_llava(llm={**QWEN3, "tie_word_embeddings": False}), build_tiny_llava(seed=1)
    student.lm_head.weight.data.zero_()
    student.lm_head.bias = torch.nn.Parameter(torch.zeros(512))
    student.lm_head.bias.data[processor.tokenizer.eos_token_id] = 50.0
    method = build_method(student, processor, teacher, on_policy=1.0, sample_tokens=6)
    batch = complete(method, student, chats())
    assert batch["layout"]["target"].tolist() == [processor.tokenizer.eos_token_id] * 3
    metrics = method.compute(student, batch).metrics
    assert (float(metrics["on_policy/length"].total), float(metrics["on_policy/ended"].total)) == (3.0, 3.0)


@pytest.mark.parametrize("build", [fastvlm, qwen2_5_vl])
def test_a_teacher_of_another_family_hears_the_sampled_answer(build: Any) -> None:
    (student, processor), (teacher, other) = build_tiny_llava(scale=1.0), build()
    method = build_method(student, processor, teacher, other, on_policy=1.0, sample_tokens=5, divergence="reverse-kl")
    raw = chats()
    batch = complete(method, student, raw)
    expected = torch.zeros(())
    size = method.teacher.vocabulary
    for row, (ids, places), (heard, theirs) in zip(raw, whole_rows(batch), whole_rows(batch["teacher"]), strict=True):
        assert [ids[place] for place in places] == [heard[place] for place in theirs]
        assert len(ids) != len(heard)
        own = plain_logits(student, processor, row, ids)[[place - 1 for place in places], :size]
        with torch.no_grad():
            taught = plain_logits(teacher, other, row, heard)[[place - 1 for place in theirs], :size]
        expected = expected + plain_divergence(taught, own, method.options)
    torch.testing.assert_close(method.compute(student, batch).loss_sum, expected, rtol=1e-5, atol=0)


def test_a_draw_depends_on_seed_step_and_row_alone() -> None:
    (student, processor), (teacher, _) = build_tiny_llava(scale=1.0), build_tiny_llava(seed=1)

    def said(rows: list[dict[str, Any]], *, step: int = 0, seed: int = 0) -> list[list[int]]:
        method = build_method(student, processor, teacher, on_policy=1.0, sample_tokens=6)
        method = MimicMethod(processor, method.options, teacher=method.teacher, seed=seed)
        return [ids for ids, _ in whole_rows(complete(method, student, rows, step=step))]

    raw = chats(4)
    together = said(raw)
    assert [said([row])[0] for row in raw] == together
    assert said(raw[::-1]) == together[::-1]
    assert all(one != other for one, other in zip(together, said(raw, step=1), strict=True))
    assert all(one != other for one, other in zip(together, said(raw, seed=1), strict=True))


def test_the_share_is_a_share_and_a_smaller_one_is_part_of_it() -> None:
    """Of 2,000 rows 30% and 60%, within four standard deviations."""
    shares = [draw(0, 5, EncodedPrompt([number], [[1]], [[True]], {}, {})).share / 2**63 for number in range(2000)]
    for share in (0.3, 0.6):
        assert sum(value < share for value in shares) / 2000 == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)


def test_no_share_is_what_it_was() -> None:
    (student, processor), (teacher, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    method = build_method(student, processor, teacher)
    batch = method.collate(chats())
    assert method.complete(student, batch, step=3) is batch
    assert batch.keys() == {"input_ids", "attention_mask", "images", "layout", "teacher"}
    assert method.compute(student, batch).metrics.keys() == {"loss/kl"}


def test_dropout_is_off_while_the_student_answers() -> None:
    """And on again afterwards; the adapter takes part."""
    (student, processor), (teacher, _) = build_tiny_llava(scale=1.0), build_tiny_llava(seed=1)
    raw = chats()
    plain = complete(build_method(student, processor, teacher, on_policy=1.0, sample_tokens=8), student, raw)
    policy = add_lora(student, LoraOptions(lora_rank=4, lora_dropout=0.5)).train()
    method = build_method(policy, processor, teacher, on_policy=1.0, sample_tokens=8)
    first = complete(method, policy, raw)
    assert torch.equal(first["input_ids"], plain["input_ids"]), "a new adapter changes nothing, and its dropout would"
    assert all(module.training for module in policy.modules())
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.5)
    assert not torch.equal(complete(method, policy, raw)["input_ids"], plain["input_ids"])
    assert all(p.grad is None for p in policy.parameters())


def test_a_sparse_student_gets_router_losses_of_what_it_said() -> None:
    sparse, processor = build_sparse()
    method = build_method(sparse, processor, build_tiny_llava(seed=1, scale=1.0)[0], on_policy=1.0, sample_tokens=5)
    batch = complete(method, sparse, chats())
    plain = method.compute(sparse, batch)
    routed = RouterLosses(RouterOptions(balance_weight=0.5)).compute(method, sparse, batch)
    balance = routed.metrics["router/balance"]
    added = 0.5 * 2 * float(balance.total / balance.count) * method.num_items(batch)
    assert routed.loss_sum.item() == pytest.approx(plain.loss_sum.item() + added, rel=1e-5)
    assert float(balance.count) == 2 * int(batch["attention_mask"].sum())


@pytest.mark.parametrize("build", [build_tiny_llava, qwen2_5_vl, paligemma])
def test_the_last_question_is_what_a_stock_prompt_ends_with(build: Any) -> None:
    """Ids and token types, of one turn and of two; another answer stands in the last one's place and has its types."""
    _, processor = build()
    # PaliGemma reads one turn.
    for raw in chats(1) if build is paligemma else (chats(1)[0], two_turns()):
        chat = read_chat(raw, index=0)
        encoded = encode_chat(processor, chat)
        got = joined(question_of(encoded), 0)
        prompt = joined(encode_questions(processor, images=chat.images, prompts=[chat.messages[:-1]]), 0)
        assert got.prefix_ids == prompt.prefix_ids
        assert got.token_types == prompt.token_types
        other = with_answer(encoded, [5, 6])
        assert [*other.prefix_ids, *other.responses[0]] == [*got.prefix_ids, 5, 6]
        assert sum(other.scored[0]) - 2 == sum(encoded.scored[0]) - (encoded.num_tokens - len(got.prefix_ids))
        assert other.scored[0][-2:] == [True, True]
        assert {key: values[-2:] for key, values in other.response_types[0].items()} == {
            key: [1 if build is paligemma else 0] * 2 for key in got.token_types
        }


def test_a_family_that_cannot_share_a_cache_answers_by_its_own_generate() -> None:
    (student, processor), (teacher, _) = paligemma(), paligemma()
    method = build_method(student, processor, teacher, on_policy=1.0, sample_tokens=4)
    assert "can't share their image's cache" in method.start(student, chats(2))
    batch = complete(method, student, chats(2))
    assert 1 <= float(batch["on_policy"]["length"].max()) <= 4
    # The teacher is the student.
    assert method.compute(student, batch).loss_sum.item() == pytest.approx(0, abs=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="on_policy is 1.5; expected a share of the rows from 0 to 1"):
        MimicLossOptions(on_policy=1.5)
    with pytest.raises(ValueError, match="sample_temperature is 0; expected a positive number"):
        MimicLossOptions(sample_temperature=0)
    with pytest.raises(ValueError, match="sample_tokens is 0"):
        MimicLossOptions(sample_tokens=0)
    with pytest.raises(ValueError, match="leave --legacy-mask and --distil all out"):
        MimicLossOptions(on_policy=0.5, distil="all")
    with pytest.raises(ValueError, match="--teacher cached knows the data's answers alone"):
        MimicOptions(model="a", data=[Path("b")], out=Path("c"), teacher=["cached"], on_policy=0.5)
