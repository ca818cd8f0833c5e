"""The runner: the answers of plain generate, each image encoded once a batch, resume, broken images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.data.images import load_image
from mmalign.data.rejects import Rejects
from mmalign.engine.beams import Beams
from mmalign.evaluation.answers import Question, count_endings, read_answers
from mmalign.evaluation.runner import _digest, generate_answers
from tests.tiny_families import qwen2_vl
from tests.tiny_models import build_tiny_llava, random_image, random_text


@pytest.fixture(scope="module")
def model_and_processor() -> Any:
    return build_tiny_llava()


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    for i in range(3):
        random_image(i).save(tmp_path / f"{i}.png")
    return [Question(f"q{i}", f"{i % 3}.png", random_text(i, 2 + i)) for i in range(7)]


def ask(model_and_processor: Any, questions: list[Question], folder: Path, **options: Any) -> list[dict[str, Any]]:
    rejects = Rejects(folder / "rejects.jsonl", max_share=options.pop("max_share", 0.5))
    out = folder / "answers.jsonl"
    answers = generate_answers(*model_and_processor, questions, image_root=folder, out=out, rejects=rejects, max_new_tokens=8, **options)
    assert answers == read_answers(out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def digest(questions: list[Question]) -> str:
    return _digest([question._replace(max_new_tokens=8) for question in questions])


def plain_answer(model: Any, processor: Any, question: Question, folder: Path) -> str:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    from PIL import Image

    inputs = processor(text=text, images=Image.open(folder / question.image), return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_equals_plain_generate(model_and_processor: Any, questions: list[Question], tmp_path: Path, batch_size: int) -> None:
    rows = ask(model_and_processor, questions, tmp_path, batch_size=batch_size)
    assert [row["id"] for row in rows] == [question.id for question in questions]
    assert [row["response"] for row in rows] == [plain_answer(*model_and_processor, question, tmp_path) for question in questions]


def test_questions_without_an_image_stand_alone(model_and_processor: Any, questions: list[Question], tmp_path: Path) -> None:
    model, processor = model_and_processor
    mixed = [questions[0], Question("text-1", None, "is there a dog"), Question("text-2", None, "yes or no"), questions[3]]
    rows = {row["id"]: row["response"] for row in ask(model_and_processor, mixed, tmp_path)}
    for question in (questions[0], questions[3]):
        assert rows[question.id] == plain_answer(model, processor, question, tmp_path)
    for question in mixed[1:3]:
        message = {"role": "user", "content": [{"type": "text", "text": question.prompt}]}
        inputs = processor(text=processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False), return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert rows[question.id] == processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_each_image_is_encoded_once_a_batch(model_and_processor: Any, questions: list[Question], tmp_path: Path) -> None:
    model, processor = model_and_processor
    encoded: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        ask((model, processor), questions, tmp_path, batch_size=10)
    finally:
        hook.remove()
    # The probe before the first batch runs one image twice: over a cached prefix and as a whole row.
    assert encoded == [1, 1, 3]


def test_a_stopped_run_goes_on_and_ends_the_same(model_and_processor: Any, questions: list[Question], tmp_path: Path) -> None:
    expected = ask(model_and_processor, questions, tmp_path, batch_size=2)
    # What a kill in the second write leaves: the first line, a batch (its questions are on one image), half of the next one.
    kept = [{**expected[i], "response": f"kept {i}"} for i in (1, 4)]
    cut = {**expected[2], "response": "half a batch"}
    origin = {
        "source": "m",
        "max_new_tokens": [8],
        "batch_size": 2,
        "questions": digest(questions),
    }
    lines = [json.dumps(row) for row in (origin, *kept, cut)]
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_text("\n".join(lines) + '\n{"id": "q5", "resp')
    rows = ask(model_and_processor, questions, tmp_path, batch_size=2, source="m")
    assert [rows[i]["response"] for i in (1, 4)] == ["kept 1", "kept 4"]
    assert [row for row in rows if row["id"] not in ("q1", "q4")] == [row for row in expected if row["id"] not in ("q1", "q4")]


def test_beams_are_part_of_what_is_resumed(model_and_processor: Any, questions: list[Question], tmp_path: Path) -> None:
    """Two rows at once are one question of two beams; greedy answers don't go on under a search."""
    origin = {"source": "m", "max_new_tokens": [8], "batch_size": 2, "questions": digest(questions)}
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_text(json.dumps(origin) + "\n")
    with pytest.raises(ValueError, match="unfinished answers of another run"):
        ask(model_and_processor, questions, tmp_path, batch_size=2, source="m", beams=Beams(2))
    partial.unlink()
    whole = ask(model_and_processor, questions, tmp_path, batch_size=64, beams=Beams(2))
    assert ask(model_and_processor, questions, tmp_path, batch_size=2, beams=Beams(2)) == whole
    kept = {**whole[1], "response": "kept"}
    lines = [{**origin, "beams": 2, "length_penalty": 0.0}, kept]
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = ask(model_and_processor, questions, tmp_path, batch_size=2, source="m", beams=Beams(2))
    assert rows == [kept if row["id"] == kept["id"] else row for row in whole]


@pytest.mark.parametrize("other", [{"source": "other"}, {"batch_size": 3}])
def test_unfinished_answers_of_another_run_are_refused(
    model_and_processor: Any, questions: list[Question], tmp_path: Path, other: dict[str, Any]
) -> None:
    origin = {
        "source": "m",
        "max_new_tokens": [8],
        "batch_size": 2,
        "questions": digest(questions),
    }
    (tmp_path / "answers.jsonl.partial").write_text(json.dumps(origin) + "\n")
    (key,) = other
    with pytest.raises(ValueError, match=f"unfinished answers of another run: its {key} is {origin[key]!r}, not {other[key]!r}"):
        ask(model_and_processor, questions, tmp_path, **{"batch_size": 2, "source": "m", **other})


def test_broken_images_cost_their_questions(model_and_processor: Any, questions: list[Question], tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"junk")
    rows = ask(model_and_processor, questions, tmp_path)
    assert [row["id"] for row in rows] == ["q0", "q2", "q3", "q5", "q6"]
    rejected = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rejected} == {"q1", "q4"}
    assert "not an image that Pillow can read" in rejected[0]["reason"]
    with pytest.raises(ValueError, match="2 of 7 rows are broken"):
        ask(model_and_processor, questions, tmp_path, max_share=0.1)


def test_what_the_processor_refuses_costs_its_questions(questions: list[Question], tmp_path: Path) -> None:
    """A strip that Qwen's processor does not take, and words that it reads as an image's place; a stopped run comes to the same."""
    built = qwen2_vl()
    random_image(1, (4, 910)).save(tmp_path / "1.png")
    odd = Question("odd", "2.png", f"what does {built[1].image_token} mean")
    asked = [odd, *questions]
    rows = ask(built, asked, tmp_path, batch_size=3, keep=True)
    assert [row["id"] for row in rows] == ["q0", "q2", "q3", "q5", "q6"]
    rejected = {row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())}
    assert rejected.keys() == {"q1", "q4", "odd"}
    assert "Qwen2VLProcessor refuses the row: absolute aspect ratio" in rejected["q1"]
    assert "reads as an image's place" in rejected["odd"]
    assert ask(built, asked, tmp_path, batch_size=3) == rows
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 3


def test_rows_say_whether_an_answer_ended(model_and_processor: Any, questions: list[Question], tmp_path: Path) -> None:
    """Beside plain generate: an answer ended by itself where the new tokens hold one that ends generation."""
    model, processor = model_and_processor
    first = plain_ids(model, processor, questions[0], tmp_path)
    kept = model.generation_config.eos_token_id
    # What the first answer says third now ends any answer.
    model.generation_config.eos_token_id = [2, first[2]]
    try:
        rows = {row["id"]: row for row in ask(model_and_processor, questions, tmp_path)}
        for question in questions:
            ids = plain_ids(model, processor, question, tmp_path)
            assert rows[question.id]["ended"] is bool({2, first[2]} & set(ids))
    finally:
        model.generation_config.eos_token_id = kept
    assert rows["q0"]["ended"]
    assert not all(row["ended"] for row in rows.values())
    assert set(rows["q0"]) == {"id", "image", "prompt", "response", "ended"}


def plain_ids(model: Any, processor: Any, question: Question, folder: Path) -> list[int]:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, images=load_image(str(question.image), root=folder), return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    ids: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


def test_each_question_has_its_own_longest_answer(model_and_processor: Any, questions: list[Question], tmp_path: Path) -> None:
    """On one image too; each answer is the beginning of the long one."""
    mixed = [question._replace(max_new_tokens=3 if i % 2 else 8) for i, question in enumerate(questions)]
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.0)
    out = tmp_path / "mixed.jsonl"
    generate_answers(*model_and_processor, mixed, image_root=tmp_path, out=out, rejects=rejects, batch_size=4)
    got = [json.loads(line) for line in out.read_text().splitlines()]
    whole = ask(model_and_processor, questions, tmp_path)
    assert [row["id"] for row in got] == [row["id"] for row in whole]
    for question, row, long in zip(mixed, got, whole, strict=True):
        same = row["response"] == long["response"]
        assert same or (question.max_new_tokens == 3 and long["response"].startswith(row["response"]) and not row["ended"])
    assert any(row["response"] != long["response"] for row, long in zip(got, whole, strict=True))


def test_reasoning_that_the_template_opens_begins_the_answer(
    model_and_processor: Any, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = model_and_processor
    opening = processor.chat_template.replace("ASSISTANT:", "ASSISTANT: <think>")
    assert opening != processor.chat_template
    monkeypatch.setattr(processor, "chat_template", opening)
    rows = ask((model, processor), questions[:2], tmp_path)
    assert all(row["response"].startswith("<think>\n") for row in rows)
    assert [answer.response for answer in read_answers(tmp_path / "answers.jsonl")] == ["", ""]
    assert count_endings(read_answers(tmp_path / "answers.jsonl"))[:2] == (2, 2)
