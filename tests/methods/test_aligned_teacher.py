"""Distillation from a teacher with another tokenizer, against full distributions of plain rows; what it hears of sampled answers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import read_chat
from mmalign.engine import aligned, head
from mmalign.methods.aligned_teacher import AlignedTeacher
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.teacher_panel import AlignedPanel
from mmalign.models.references import Reference
from mmalign.options.methods import DivergenceOptions, MimicLossOptions, MimicOptions
from mmalign.options.training import RouterOptions
from mmalign.training.router import RouterLosses
from mmalign.worlds.tokenizer import train_tokenizer
from tests.methods.test_mimic import assert_same_gradients, build_method, gradients, plain_logits
from tests.methods.test_on_policy import complete, two_turns, whole_rows
from tests.methods.test_on_policy import plain_logits as logits_of
from tests.methods.test_router import build_sparse, chats
from tests.tiny_families import qwen2_5_vl
from tests.tiny_models import QWEN3, build_tiny_llava

KINDS = [
    {"divergence": "uld"},
    {"divergence": "uld", "temperature": 2.0},
    {"divergence": "uld-hybrid", "js_weight": 0.3},
]
Model = tuple[PreTrainedModel, Any]


def other_teacher(**options: Any) -> Model:
    """Its tokenizer has other special tokens, and no word of the chats but a few."""
    return build_tiny_llava(tokenizer=train_tokenizer(["a red dog sees the cat onthere"] * 3), seed=1, scale=1.0, **options)


def split_chats(number: int = 3) -> list[dict[str, Any]]:
    """Each answer ends with a word that the teacher has whole and the student in parts."""
    rows = chats(number)
    for row in rows:
        row["messages"][-1] = {"role": "assistant", "content": row["messages"][-1]["content"] + " onthere"}
    return rows


def build_aligned(student: PreTrainedModel, processor: Any, teacher: Model, **options: Any) -> AlignedTeacher:
    by_name = options.get("divergence") == "uld-hybrid"
    reference = Reference(student, kind="copy", model=teacher[0])
    return AlignedTeacher(reference, teacher[1], student=student, student_processor=processor, by_name=by_name)


def build_uld(student: PreTrainedModel, processor: Any, teacher: Model, **options: Any) -> MimicMethod:
    options = {"divergence": "uld", **options}
    return MimicMethod(processor, MimicLossOptions(**options), teacher=build_aligned(student, processor, teacher, **options))


def meet(texts: tuple[list[str], list[str]]) -> list[tuple[list[int], list[int]]]:
    """Places of the tokens between one meeting point and the next: the second derivation, of texts that are ASCII."""
    found: list[tuple[list[int], list[int]]] = []
    open_ones: tuple[list[int], list[int]] = ([], [])
    read, places = ["", ""], [0, 0]
    while places[0] < len(texts[0]) or places[1] < len(texts[1]):
        side = 0 if len(read[0]) <= len(read[1]) and places[0] < len(texts[0]) else 1
        read[side] += texts[side][places[side]]
        open_ones[side].append(places[side])
        places[side] += 1
        if read[0] == read[1]:
            found.append(open_ones)
            open_ones = ([], [])
    return found


def plain_distance(student: tuple[Tensor, Tensor, Any], teacher: tuple[Tensor, Tensor, Any], kind: DivergenceOptions) -> tuple[Tensor, int]:
    """Of an answer with its end: the logits that predict it, its ids and the tokenizer of both. Returns sum and number of groups."""
    pieces = [[one.decode([i]).replace("</s>", "|") for i in ids] for _, ids, one in (student, teacher)]
    if len({part[0][0] for part in pieces}) == 2:
        pieces = [[first.lstrip(), *rest] for first, *rest in pieces]
    vocabularies = [len(one) for _, _, one in (student, teacher)]
    total, groups = torch.zeros(()), meet((pieces[0], pieces[1]))
    for group in groups:
        p = []
        for (logits, ids, _), places, size in zip((teacher, student), group[::-1], vocabularies[::-1], strict=True):
            probs = (logits[places][:, :size] / kind.temperature).softmax(-1)
            p.append(probs[0] * math.prod(probs[i, ids[place]] for i, place in enumerate(places) if i))
        share, near = 0.0, torch.zeros(())
        if kind.divergence == "uld-hybrid":
            names = [one.get_vocab() for _, _, one in (teacher, student)]
            common = sorted(names[0].keys() & names[1].keys())
            told = [part[[own[name] for name in common]] for part, own in zip(p, names, strict=True)]
            share, b = len(common) / len(p[0]), kind.js_weight
            m = b * told[0] + (1 - b) * told[1]
            near = b * F.kl_div(m.log(), told[0], reduction="sum") + (1 - b) * F.kl_div(m.log(), told[1], reduction="sum")
            p = [part[[i for name, i in own.items() if name not in common]] for part, own in zip(p, names, strict=True)]
        size = max(map(len, p))
        ranked = [F.pad(part.sort(descending=True).values, (0, size - len(part))) for part in p]
        total = total + share * near + (1 - share) * (ranked[0] - ranked[1]).abs().sum()
    return total, len(groups)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind['divergence']}-{kind.get('temperature', 1)}")
def test_loss_and_gradients_are_those_of_full_distributions(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded batch and chunks of a group, against plain rows of both models, groups found by spelling."""
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 9 * 512)
    (student, processor), teacher = build_tiny_llava(scale=1.0), other_teacher()
    method = build_uld(student, processor, teacher, **kind, kl_weight=0.7, ce_weight=0.3)
    raw = split_chats()
    for row in raw:
        method.check(row, index=0)
    batch = method.collate(raw)
    output = method.compute(student, batch)
    got = gradients(student, output.loss_sum)
    divergence, nll, count = torch.zeros(()), torch.zeros(()), 0
    for row in raw:
        own, target = plain_logits(student, processor, row)
        with torch.no_grad():
            taught, theirs = plain_logits(*teacher, row)
        value, groups = plain_distance(
            (own, target, processor.tokenizer), (taught, theirs, teacher[1].tokenizer), DivergenceOptions(**kind)
        )
        assert groups < min(len(target), len(theirs)), "some tokens of both are parts of a group"
        divergence, count = divergence + value, count + groups
        nll = nll + F.cross_entropy(own, target, reduction="sum")
    expected = 0.7 * kind.get("temperature", 1.0) ** 2 * divergence + 0.3 * nll
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert method.num_items(batch) == count == output.metrics["loss/uld"].count
    assert float(output.metrics["loss/uld"].total) == pytest.approx(divergence.item(), rel=1e-5)
    assert float(output.metrics["loss/nll"].total) == pytest.approx(nll.item(), rel=1e-5)
    assert_same_gradients(got, gradients(student, expected))
    assert all(p.grad is None for p in teacher[0].parameters())


def test_of_the_students_own_tokens_the_hybrid_is_jensen_shannon() -> None:
    """Equal tokenizers: a group is a token. Loss and gradients are those of --divergence js; sorted alone, a copy teaches nothing."""
    (student, processor), teacher = build_tiny_llava(scale=1.0), build_tiny_llava(seed=1, scale=1.0)
    shannon = build_method(student, processor, *teacher, divergence="js", js_weight=0.3)
    hybrid = build_uld(student, processor, teacher, divergence="uld-hybrid", js_weight=0.3)
    # Padding rows of the head are in the one and not in the other.
    shannon.teacher.vocabulary = hybrid.teacher.vocabulary
    outputs = [one.compute(student, one.collate(chats())) for one in (shannon, hybrid)]
    torch.testing.assert_close(outputs[1].loss_sum, outputs[0].loss_sum, rtol=1e-5, atol=0)
    assert_same_gradients(*(gradients(student, one.loss_sum) for one in outputs))
    assert shannon.num_items(shannon.collate(chats())) == hybrid.num_items(hybrid.collate(chats()))
    twin = build_uld(student, processor, build_tiny_llava(scale=1.0))
    assert twin.compute(student, twin.collate(chats())).loss_sum.item() == pytest.approx(0, abs=1e-4)


def test_a_teacher_of_another_family_reads_its_own_pixels() -> None:
    """On three axes' positions, with other image tokens; conversations of two turns are two answers."""
    (student, processor), teacher = build_tiny_llava(tokenizer=train_tokenizer(["a red dog"] * 3), scale=1.0), qwen2_5_vl()
    method = build_uld(student, processor, teacher)
    raw = [*chats(2), two_turns()]
    told = method.start(student, raw)
    assert "tokens of the first rows' answers meet" in told
    batch = method.collate(raw)
    assert batch["teacher"]["batch"]["input_ids"].shape != batch["input_ids"].shape
    expected = torch.zeros(())
    for row in raw[:2]:
        own, target = plain_logits(student, processor, row)
        with torch.no_grad():
            taught, theirs = plain_logits(*teacher, row)
        expected = expected + plain_distance((own, target, processor.tokenizer), (taught, theirs, teacher[1].tokenizer), method.options)[0]
    torch.testing.assert_close(method.compute(student, method.collate(raw[:2])).loss_sum, expected, rtol=1e-5, atol=0)
    assert batch["teacher"]["student_group"].max() == batch["teacher"]["group"].max() == method.num_items(batch) - 1


def test_the_teacher_hears_the_words_of_sampled_answers() -> None:
    """Its tokens spell what the student said, byte by byte; tokens that are no text are never said."""
    (student, processor), teacher = build_tiny_llava(scale=1.0), other_teacher()
    method = build_uld(student, processor, teacher, on_policy=1.0, sample_tokens=8)
    special = set(processor.tokenizer.all_special_ids) - {processor.tokenizer.eos_token_id}
    student.get_output_embeddings().weight.data[[*special]] *= 30.0
    raw = [*chats(4), two_turns()]
    batch = complete(method, student, raw)
    heard = whole_rows(batch["teacher"]["batch"])
    said_anew = 0
    for row, (ids, places), (theirs, at) in zip(raw[:4], whole_rows(batch), heard, strict=False):
        said = [ids[place] for place in places]
        assert not special & set(said)
        text = processor.tokenizer.decode(said, skip_special_tokens=True)
        if not text.isascii():
            continue
        assert teacher[1].tokenizer.decode([theirs[place] for place in at], skip_special_tokens=True).strip() == text.strip()
        said_anew += text != row["messages"][-1]["content"]
    assert said_anew >= 1
    output = method.compute(student, batch)
    assert float(output.metrics["on_policy/unread"].total) == 0
    assert output.metrics["on_policy/length"].count == 5


def test_loss_on_a_sampled_answer_is_that_of_full_distributions() -> None:
    """A student that says four words and its end alone; where it is cut, nothing behind the words is compared."""
    (student, processor), teacher = build_tiny_llava(scale=1.0, llm={**QWEN3, "tie_word_embeddings": False}), other_teacher()
    method = build_uld(student, processor, teacher, on_policy=1.0, sample_tokens=6)
    end, told = processor.tokenizer.eos_token_id, ("circle", "dog", "table", "see")
    words = [i for i in processor.tokenizer.get_vocab().values() if processor.tokenizer.decode([i]).strip() in told]
    student.lm_head.bias = torch.nn.Parameter(torch.full((512,), -30.0))
    student.lm_head.bias.data[[*words, end]] = 0.0
    raw = chats(2)
    batch = complete(method, student, raw)
    expected, count = torch.zeros(()), 0
    for row, (ids, places), (theirs, at) in zip(raw, whole_rows(batch), whole_rows(batch["teacher"]["batch"]), strict=True):
        assert {ids[place] for place in places} <= {*words, end}
        own = logits_of(student, processor, row, ids)[[place - 1 for place in places]]
        with torch.no_grad():
            taught = logits_of(*teacher, row, theirs)[[place - 1 for place in at]]
        ended = ids[places[-1]] == end
        target, their_target = torch.tensor([ids[place] for place in places]), torch.tensor([theirs[place] for place in at])
        if not ended:
            taught, their_target = taught[:-1], their_target[:-1]
        value, groups = plain_distance((own, target, processor.tokenizer), (taught, their_target, teacher[1].tokenizer), method.options)
        expected, count = expected + value, count + groups
    torch.testing.assert_close(method.compute(student, batch).loss_sum, expected, rtol=1e-5, atol=0)
    assert method.num_items(batch) == count


def test_an_answer_that_the_teacher_cannot_read_stays_the_datas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that spells the teacher's place of an image."""
    (student, processor), teacher = build_tiny_llava(scale=1.0), other_teacher()
    method = build_uld(student, processor, teacher, on_policy=1.0, sample_tokens=8)
    monkeypatch.setattr(method.teacher._student, "text", lambda ids: "a <image>")  # type: ignore[attr-defined]
    batch = complete(method, student, chats())
    assert torch.equal(batch["input_ids"], build_uld(student, processor, teacher).collate(chats())["input_ids"])
    metrics = method.compute(student, batch).metrics
    assert (float(metrics["on_policy/unread"].total), metrics["on_policy/unread"].count) == (3.0, 3)
    assert metrics["on_policy/length"].count == 0


def test_each_row_has_its_own_teacher() -> None:
    """Of two with other tokenizers each: the loss is the sum of what each gives alone."""
    student, processor = build_tiny_llava(scale=1.0)
    teachers = {"drawn": other_teacher(), "photos": qwen2_5_vl()}
    names = ["drawn", "photos", "drawn", "photos", "photos"]
    raw = [{**row, "source": name} for row, name in zip(chats(5), names, strict=True)]
    live = {name: build_aligned(student, processor, teacher) for name, teacher in teachers.items()}
    method = MimicMethod(processor, MimicLossOptions(divergence="uld"), teacher=AlignedPanel(live, column="source"))
    assert len(method.start(student, raw).splitlines()) == 3
    batch = method.collate(raw)
    got = method.compute(student, batch).loss_sum
    found, count = torch.zeros(()), 0
    for name, teacher in teachers.items():
        alone = build_uld(student, processor, teacher)
        part = alone.collate([row for row in raw if row["source"] == name])
        found, count = found + alone.compute(student, part).loss_sum, count + alone.num_items(part)
    torch.testing.assert_close(got, found, rtol=1e-5, atol=0)
    assert method.num_items(batch) == count
    assert_same_gradients(gradients(student, got), gradients(student, found))
    sampled = MimicMethod(processor, MimicLossOptions(divergence="uld", on_policy=1.0, sample_tokens=5), teacher=method.teacher)
    assert sampled.compute(student, complete(sampled, student, raw)).metrics["on_policy/length"].count > 0


def test_a_sparse_student_gets_router_losses_by_group() -> None:
    sparse, processor = build_sparse()
    method = build_uld(sparse, processor, other_teacher())
    batch = method.collate(chats())
    plain = method.compute(sparse, batch)
    routed = RouterLosses(RouterOptions(balance_weight=0.5)).compute(method, sparse, batch)
    balance = routed.metrics["router/balance"]
    added = 0.5 * 2 * float(balance.total / balance.count) * method.num_items(batch)
    assert routed.loss_sum.item() == pytest.approx(plain.loss_sum.item() + added, rel=1e-5)


def test_a_longer_prompt_is_no_larger_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states that are compared, and the chunks of words, are the answers'."""
    (student, processor), teacher = build_tiny_llava(scale=1.0), other_teacher()
    method, seen = build_uld(student, processor, teacher), []
    whole = aligned._compare

    def compare(part: slice, own: Any, other: Any, *rest: Any) -> Tensor:
        seen.append((len(own.hidden), len(other.hidden)))
        return whole(part, own, other, *rest)

    monkeypatch.setattr(aligned, "_compare", compare)
    for number in (1, 20):
        row = chats(1)[0]
        row["messages"] = [{**row["messages"][0], "content": "a red dog " * number}, row["messages"][1]]
        method.compute(student, method.collate([row]))
    assert seen[0] == seen[1]


def test_an_answer_read_apart_by_a_template_is_refused() -> None:
    (student, processor), teacher = build_tiny_llava(), other_teacher()
    teacher[1].chat_template = teacher[1].chat_template.replace("content", "content | upper", 1)
    method = build_uld(student, processor, teacher)
    assert isinstance(encode_chat(processor, read_chat(chats(1)[0], index=0)), EncodedPrompt)
    with pytest.raises(ValueError, match=r"the answer|the chat template"):
        method.check(chats(1)[0], index=0)


def test_no_response_token_is_a_loss_of_zero() -> None:
    (student, processor), teacher = build_tiny_llava(), other_teacher()
    method = build_uld(student, processor, teacher)
    batch = method.collate(chats())
    for side in (batch, batch["teacher"]["batch"]):
        side["layout"] |= {key: side["layout"][key][:0] for key in ("index", "target", "response")}
    batch["teacher"] |= {key: batch["teacher"][key][:0] for key in ("group", "student_group")}
    assert method.num_items(batch) == 0
    output = method.compute(student, batch)
    assert output.loss_sum.item() == 0
    assert all(not grad.any() for grad in gradients(student, output.loss_sum).values())


def test_what_makes_no_sense_is_refused() -> None:
    for more in ({"legacy_mask": True}, {"distil": "all"}, {"visual_advantage": "both"}):
        with pytest.raises(ValueError, match="--divergence uld compares answers at the right places"):
            MimicLossOptions(divergence="uld", **more)
    with pytest.raises(ValueError, match="cached knows the student's tokens alone; use a live teacher for --divergence uld-hybrid"):
        MimicOptions(model="a", data=[Path("b")], out=Path("c"), teacher=["cached"], divergence="uld-hybrid")
    with pytest.raises(ValueError, match="js_weight is 0.3, and divergence 'uld' has none"):
        MimicLossOptions(divergence="uld", js_weight=0.3)
