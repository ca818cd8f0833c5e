"""Several teachers, each of its own rows, against full logits; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mmalign.engine import head
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.teacher_panel import TeacherPanel, build_teacher
from mmalign.methods.teachers import LiveTeacher
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import DivergenceOptions, MimicLossOptions, MimicOptions
from tests.methods.test_mimic import KINDS, assert_same_gradients, gradients, plain_divergence, plain_logits
from tests.methods.test_on_policy import complete, whole_rows
from tests.methods.test_on_policy import plain_logits as logits_of
from tests.methods.test_router import chats
from tests.tiny_families import FAMILIES, fastvlm
from tests.tiny_models import QWEN3, build_tiny_llava

NAMES = ("drawn", "photos", "drawn", "drawn", "photos")


def build_panel(student: PreTrainedModel, processor: Any, teachers: dict[str, tuple[PreTrainedModel, Any]], **options: Any) -> MimicMethod:
    live = {
        name: LiveTeacher(Reference(student, kind="copy", model=model), own, student=student, student_processor=processor)
        for name, (model, own) in teachers.items()
    }
    return MimicMethod(processor, MimicLossOptions(**options), teacher=TeacherPanel(live, column="source"))


def named_chats(names: tuple[str, ...] = NAMES) -> list[dict[str, Any]]:
    return [{**row, "source": name} for row, name in zip(chats(len(names)), names, strict=True)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.divergence}-{kind.temperature}")
@pytest.mark.parametrize("names", [NAMES, ("photos", "photos")], ids=["mixed", "of-one"])
def test_each_row_has_its_own_teacher(kind: DivergenceOptions, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the student's family and one of another, with other widths; chunks of a few tokens hold tokens of both."""
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 5 * 512)
    student, processor = build_tiny_llava(llm={**QWEN3, "vocab_size": 640}, scale=1.0)
    teachers = {"drawn": build_tiny_llava(seed=1, scale=1.0), "photos": fastvlm()}
    method = build_panel(student, processor, teachers, **vars(kind), ce_weight=0.3)
    assert method.columns == ("messages", "source")
    raw = named_chats(names)
    assert len(method.start(student, raw).splitlines()) == 3
    output = method.compute(student, method.collate(raw))
    got = gradients(student, output.loss_sum)
    size, expected = method.teacher.vocabulary, torch.zeros(())
    for row in raw:
        own, target = plain_logits(student, processor, row)
        with torch.no_grad():
            taught, _ = plain_logits(*teachers[row["source"]], row)
        expected = expected + kind.temperature**2 * plain_divergence(taught[:, :size], own[:, :size], kind)
        expected = expected + 0.3 * torch.nn.functional.cross_entropy(own, target, reduction="sum")
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    assert_same_gradients(got, gradients(student, expected))


def test_rows_of_several_teachers_are_not_packed(tmp_path: Path) -> None:
    """A family whose state runs through the row can be one of them, beside packed rows of the student's."""
    student, _ = FAMILIES["qwen3-vl"]()
    for part in FAMILIES["qwen3.5"]():
        part.save_pretrained(tmp_path / "teacher")
    _, processor = load_mllm(str(tmp_path / "teacher"))
    several = [f"{name}={tmp_path / 'teacher'}" for name in ("drawn", "photos")]
    words: dict[str, Any] = {"model": "a", "data": Path("b"), "out": Path("c"), "row_tokens": 10_000}
    raw, losses = named_chats(), []
    for options in (MimicOptions(**words, teacher=several), MimicOptions(**words | {"row_tokens": None}, teacher=several)):
        method = MimicMethod(processor, options, teacher=build_teacher(options, student, processor))
        assert len(method.start(student, raw).splitlines()) == 3
        losses.append(method.compute(student, method.collate(raw)).loss_sum)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    alone = MimicOptions(**words, teacher=[str(tmp_path / "teacher")])
    with pytest.raises(
        ValueError,
        match=r"can't pack prompts into rows: some of its layers keep a state .*; leave --row-tokens out",
    ):
        MimicMethod(processor, alone, teacher=build_teacher(alone, student, processor)).start(student, raw)


def test_sampled_answers_go_to_the_rows_own_teacher() -> None:
    student, processor = build_tiny_llava(scale=1.0)
    teachers = {"drawn": build_tiny_llava(seed=1, scale=1.0), "photos": fastvlm()}
    method = build_panel(student, processor, teachers, on_policy=1.0, sample_tokens=5)
    raw = named_chats()
    batch = complete(method, student, raw)
    size, expected = method.teacher.vocabulary, torch.zeros(())
    heard = {name: iter(whole_rows(batch["teacher"][f"teacher {name}"])) for name in teachers}
    for row, (ids, places) in zip(raw, whole_rows(batch), strict=True):
        theirs, at = next(heard[row["source"]])
        assert [theirs[place] for place in at] == [ids[place] for place in places]
        own = logits_of(student, processor, row, ids)[[place - 1 for place in places], :size]
        with torch.no_grad():
            taught = logits_of(*teachers[row["source"]], row, theirs)[[place - 1 for place in at], :size]
        expected = expected + plain_divergence(taught, own, method.options)
    torch.testing.assert_close(method.compute(student, batch).loss_sum, expected, rtol=1e-5, atol=0)


def test_a_row_of_nobodys_is_refused() -> None:
    student, processor = build_tiny_llava()
    method = build_panel(student, processor, {"drawn": build_tiny_llava(seed=1), "photos": build_tiny_llava(seed=2)})
    with pytest.raises(ValueError, match="source is 'maps', and the teachers are drawn, photos; give it one"):
        method.check(named_chats(("maps",))[0], index=0)


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (["a=x", "y"], {}, "teacher is a=x y; expected one model, or several with names of their own"),
        (["a=x", "a=y"], {}, "expected one model, or several with names of their own"),
        ([], {}, "expected one model"),
        (["a=x", "b=cached"], {}, "of several teachers each is live"),
        (["a=x", "b=y"], {"visual_advantage": "both"}, "leave cached and --visual-advantage out"),
    ],
)
def test_teachers_that_cannot_be_told_apart_are_refused(words: list[str], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MimicOptions(model="m", data=[Path("b")], out=Path("c"), teacher=words, **more)


def test_one_teacher_may_have_any_path() -> None:
    assert MimicOptions(model="m", data=[Path("b")], out=Path("c"), teacher=["runs/lr=1/x"]).teachers == {"": "runs/lr=1/x"}
