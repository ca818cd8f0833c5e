"""The commands as functions: what is in memory gives what files give, and what can't be used is refused by name."""

import copy
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets

import mmalign
from mmalign.cli import COMMANDS
from mmalign.data.datasets import hash_rows, load_rows
from mmalign.errors import UserError
from mmalign.models.load import load_clip, load_mllm
from mmalign.options.methods import PreferenceOptions
from tests.data_files import chat_rows, save_rows
from tests.tiny_classifiers import save_tiny_clip
from tests.tiny_models import build_tiny_llava, pair_rows
from tests.tiny_pipelines import build_latent_pipeline, picture_rows, save_pictures, save_pipeline, single_rows

STEPS: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}


@pytest.fixture
def pairs() -> Dataset:
    return Dataset.from_list(pair_rows(8))


def test_import_and_listing_are_light() -> None:
    code = (
        "import sys, mmalign; print('train_preference' in dir(mmalign), sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True []"


def test_signatures_are_the_options() -> None:
    parameters = inspect.signature(mmalign.train_preference).parameters
    assert list(parameters) == list(inspect.signature(PreferenceOptions).parameters)
    assert parameters["learning_rate"].default == 2e-6
    assert parameters["model"].default is inspect.Parameter.empty


def test_in_memory_trains_as_from_files(tiny_llava_dir: Path, pairs: Dataset, tmp_path: Path) -> None:
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(8))
    files = mmalign.train_preference(model=str(tiny_llava_dir), data=data, out=tmp_path / "files", **STEPS)
    loaded = load_mllm(str(tiny_llava_dir))
    start = copy.deepcopy(loaded[0].state_dict())
    memory = mmalign.train_preference(model=loaded, data=pairs, out=tmp_path / "memory", **STEPS)
    assert memory.model is loaded[0]
    assert [entry["loss"] for entry in memory.log if "loss" in entry] == [entry["loss"] for entry in files.log if "loss" in entry]
    trained = memory.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in files.model.state_dict().items())
    assert any(not torch.equal(value, trained[name]) for name, value in start.items())
    assert memory.metrics["rewards/margin"] == memory.log[1]["rewards/margin"]
    # The folder is what the command leaves; its card says what the run began with.
    assert all(torch.equal(value, trained[name]) for name, value in load_mllm(str(tmp_path / "memory"))[0].state_dict().items())
    assert "8 rows of memory:Dataset-" in (tmp_path / "memory" / "README.md").read_text()
    # The same rows and weights again are the same run; other weights are not.
    again = mmalign.train_preference(model=load_mllm(str(tiny_llava_dir)), data=pairs, out=tmp_path / "memory", **STEPS)
    assert again.log[0] == memory.log[0]
    with pytest.raises(UserError, match="holds another run: its model is 'memory:LlavaForConditionalGeneration-"):
        mmalign.train_preference(model=build_tiny_llava(seed=3), data=pairs, out=tmp_path / "memory", **STEPS)


def test_every_way_of_training_is_a_function() -> None:
    for name, command in COMMANDS.items():
        if name.startswith("train "):
            function = getattr(mmalign, name.replace(" ", "_").replace("-", "_"))
            assert list(inspect.signature(function).parameters) == list(inspect.signature(command.options_class()).parameters)


def caption_rows() -> list[dict[str, Any]]:
    return [{"images": row["images"], "text": row["chosen"][0]["content"]} for row in pair_rows(8)]


def question_rows() -> list[dict[str, Any]]:
    return [{"images": row["images"], "prompt": row["prompt"], "answer": "dog"} for row in pair_rows(8)]


@pytest.mark.parametrize(
    ("name", "rows", "given"),
    [
        ("reward", pair_rows(8), {}),
        ("online", question_rows(), {"reward": "answers", "samples": 2, "max_new_tokens": 3}),
        ("contrastive", caption_rows(), {}),
    ],
)
def test_other_ways_train_in_memory_as_from_files(
    name: str, rows: list[dict[str, Any]], given: dict[str, Any], tiny_llava_dir: Path, tmp_path: Path
) -> None:
    clip, train = name == "contrastive", getattr(mmalign, f"train_{name}")
    folder = save_tiny_clip(tmp_path / "clip", ["a red dog"], max_positions=24) if clip else tiny_llava_dir
    loaded = (load_clip if clip else load_mllm)(str(folder))
    files = train(model=str(folder), data=save_rows(tmp_path / "rows.parquet", rows), out=tmp_path / "files", **STEPS, **given)
    memory = train(model=loaded, data=Dataset.from_list(rows), out=tmp_path / "memory", **STEPS, **given)
    assert memory.model is loaded[0]
    assert [entry["loss"] for entry in memory.log[:2]] == [entry["loss"] for entry in files.log[:2]]
    assert all(torch.equal(value, memory.model.state_dict()[key]) for key, value in files.model.state_dict().items())


@pytest.mark.parametrize(("name", "rows"), [("denoiser", single_rows(8)), ("image_preference", picture_rows(8))])
def test_pipelines_train_on_pictures_in_memory(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    pipeline, data = save_pipeline(build_latent_pipeline(), tmp_path / "pipeline"), save_pictures(tmp_path / "rows.parquet", rows)
    given: dict[str, Any] = {"model": str(pipeline), **STEPS}
    logs = [
        getattr(mmalign, f"train_{name}")(data=source, out=tmp_path / str(number), **given).log[:2]
        for number, source in enumerate((data, Dataset.from_parquet(str(data))))
    ]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]


def test_an_adapter_on_a_model_in_memory_has_a_card(pairs: Dataset, tmp_path: Path) -> None:
    trained = mmalign.train_preference(model=build_tiny_llava(), data=pairs, out=tmp_path / "out", lora_rank=2, **STEPS)
    assert (trained.folder / "adapter_model.safetensors").is_file()
    card = (trained.folder / "README.md").read_text()
    assert "base_model" not in card.split("---")[1]
    assert "LlavaForConditionalGeneration" in card


def test_a_teacher_with_the_students_weights_stays(tmp_path: Path) -> None:
    student, processor = build_tiny_llava()
    teacher = copy.deepcopy(student)
    before = copy.deepcopy(teacher.state_dict())
    chats = Dataset.from_list(chat_rows(8))
    given: dict[str, Any] = {"data": chats, "ce_weight": 1.0, "warmup_ratio": 0.0, **STEPS}
    trained = mmalign.train_mimic(model=(student, processor), teacher=(teacher, processor), out=tmp_path / "out", **given)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    losses = [entry["loss/kl"] for entry in trained.log if "loss" in entry]
    # Student and teacher begin as one, and only the student moves.
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[1] > 1e-6
    with pytest.raises(UserError, match="teacher is the same object as another option's model"):
        mmalign.train_mimic(model=(student, processor), teacher=(student, processor), out=tmp_path / "other", **given)


def test_scores_are_a_reference_for_the_same_weights_alone(pairs: Dataset, tmp_path: Path) -> None:
    loaded, clip = build_tiny_llava(), load_clip(str(save_tiny_clip(tmp_path / "clip", ["a red dog"], max_positions=24)))
    scored = mmalign.score_difficulty(pairs=pairs, clip=clip, mllm=loaded, out=tmp_path / "difficulty")
    assert scored is not None
    assert scored.summary["num_scored"] == len(scored.dataset) == 8
    assert list(scored.dataset["difficulty"]) == list(load_rows(scored.folder / "scored.parquet")["difficulty"])
    given: dict[str, Any] = {"data": scored.dataset, "reference": "cached", **STEPS}
    with pytest.raises(UserError, match="weights"):
        mmalign.train_preference(model=build_tiny_llava(seed=3), out=tmp_path / "other", **given)
    trained = mmalign.train_preference(model=loaded, out=tmp_path / "out", **given)
    assert trained.log[0]["loss"] == pytest.approx(0.693147, abs=1e-4)


def test_upcycling_in_memory_computes_the_same(tmp_path: Path) -> None:
    dense, processor = build_tiny_llava()
    sparse = mmalign.upcycle(model=(dense, processor), out=tmp_path / "sparse")
    ids = torch.arange(5, 17).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(dense(input_ids=ids).logits, sparse.model(input_ids=ids).logits, atol=1e-5)
    assert json.loads((sparse.folder / "config.json").read_text())["text_config"]["model_type"] == "qwen3_moe"
    with pytest.raises(UserError, match="is in bfloat16, and float32 is asked for"):
        mmalign.upcycle(model=(dense.to(torch.bfloat16), processor), out=tmp_path / "half")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modell": "m"}, "unknown option 'modell'; did you mean 'model'?"),
        ({"model": "m"}, "missing: data, out"),
        ({"max_steps": "many"}, "max_steps is 'many'; expected int"),
        ({"model": build_tiny_llava()[0]}, r"expected the model and its processor: model=\(model, processor\)"),
        ({"data": DatasetDict()}, "data is a DatasetDict; expected a datasets.Dataset"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    rest = {} if "missing" in message else {"model": "m", "data": tmp_path, "out": tmp_path / "out"}
    with pytest.raises(UserError, match=message):
        mmalign.train_preference(**{**rest, **given})


def test_rows_have_one_hash_whatever_their_pieces(pairs: Dataset) -> None:
    halves = concatenate_datasets([pairs.select(range(4)), pairs.select(range(4, 8))])
    assert hash_rows(halves) == hash_rows(Dataset.from_list(pair_rows(8))) == hash_rows(pairs)
    assert hash_rows(pairs.select([1, 0, *range(2, 8)])) != hash_rows(pairs)
    assert hash_rows(pairs.rename_column("id", "name")) != hash_rows(pairs)


def test_nothing_else_is_an_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'mmalign' has no attribute 'train_everything'"):
        mmalign.train_everything  # noqa: B018
