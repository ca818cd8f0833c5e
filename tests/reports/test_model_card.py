"""Cards are read back with the Hub's own parser, and their loading code is run."""

import dataclasses
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from mmalign.models.adapters import add_lora
from mmalign.models.contrastive import build_or_load_clip
from mmalign.models.load import load_mllm
from mmalign.models.parameters import ParameterCounts
from mmalign.options.training import LoraOptions
from mmalign.reports.model_card import CardFacts, CardResult, card_results, fill_template, find_template, load_template, write_model_card
from tests.conftest import REPOSITORY
from tests.tiny_models import CLIP_TOWER, build_tokenizer, random_image

HASH = "0123456789abcdef" * 4
RESULT = {
    "benchmark": "pope",
    "mode": "official",
    "metrics": {"pope/f1": 0.8125, "pope/random/f1": 0.9},
    "num_answers": 1800,
    "data": {"pope_random.jsonl": HASH},
}
FACTS = CardFacts(
    model_name="shapes-dpo",
    summary="A small multimodal LLM: trained on drawn shapes.",
    kind="full",
    license="apache-2.0",
    language="en",
    started_from="runs/sft | 900 steps",
    architecture="LlavaForConditionalGeneration",
    parameters=ParameterCounts(total=1_234_567, trainable=1_000_000, activated=900_000),
    data_description="Preference pairs about drawn scenes.",
    data={"pairs/train.parquet": HASH},
    recipe="DPO, `mmalign train preference`.",
    config={"beta": 0.1, "seed": 0, "freeze": ["vision_tower"]},
    version="0.1.0",
    commit="f" * 40,
    intended_use="Tests.",
    limits=["Knows shapes only.", "Hallucinates."],
)


def write(folder: Path, **changes: Any) -> tuple[str, ModelCard]:
    path = write_model_card(folder, dataclasses.replace(FACTS, **changes))
    assert path == folder / "README.md"
    return path.read_text(encoding="utf-8"), ModelCard.load(path)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0].strip()


def test_metadata_is_valid_and_complete(tmp_path: Path) -> None:
    _, card = write(tmp_path, evaluation=card_results(RESULT), base_model="org/base", tags=("dpo",))
    data = card.data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", "en", "transformers")
    assert (data.pipeline_tag, data.base_model, data.tags) == ("image-text-to-text", "org/base", ["mmalign", "dpo"])
    assert data.model_name == "shapes-dpo"
    results = [(r.dataset_type, r.dataset_revision, r.metric_type, r.metric_value) for r in data.eval_results]
    assert results == [("pope", HASH, "pope/f1", 0.8125), ("pope", HASH, "pope/random/f1", 0.9)]


def test_metrics_of_several_modes_stay_apart(tmp_path: Path) -> None:
    modes = {"ce head": 0.5, "kd head": 0.25}
    results = [dataclasses.replace(card_results(RESULT)[0], mode=mode, value=value) for mode, value in modes.items()]
    _, card = write(tmp_path, evaluation=results)
    found = [(r.dataset_name, r.metric_value) for r in card.data.eval_results]
    assert found == [("pope (ce head)", 0.5), ("pope (kd head)", 0.25)]


@pytest.mark.parametrize(
    ("kind", "library", "task"),
    [("adapter", "peft", "image-text-to-text"), ("contrastive", "transformers", "zero-shot-image-classification")],
)
def test_other_kinds(tmp_path: Path, kind: str, library: str, task: str) -> None:
    text, card = write(tmp_path, kind=kind)
    assert (card.data.library_name, card.data.pipeline_tag) == (library, task)
    assert ("LoRA adapter" in text) == (kind == "adapter")
    assert card.data.eval_results is None
    assert "base_model" not in card.data.to_dict()


def test_every_fact_is_in_its_section(tmp_path: Path) -> None:
    text, _ = write(tmp_path, evaluation=card_results(RESULT))
    assert "# shapes-dpo\n\nA small multimodal LLM: trained on drawn shapes.\n" in text
    assert "| Started from | runs/sft \\| 900 steps |" in text
    assert [re.sub(r"\D", "", line) for line in text.splitlines() if line.startswith("| Parameters")] == ["1234567", "1000000", "900000"]
    assert f"| pairs/train.parquet | `{HASH}` |" in section(text, "Data")
    training = section(text, "Training")
    assert f"mmalign 0.1.0, commit {'f' * 40}" in training
    assert yaml.safe_load(training.split("```yaml\n")[1].split("```")[0]) == FACTS.config
    assert f"| pope (official) | pope/f1 | 0.8125 | 1,800 | `{HASH[:12]}` |" in section(text, "Evaluation")
    assert section(text, "Intended use") == "Tests."
    assert section(text, "Limits") == "- Knows shapes only.\n- Hallucinates."


def test_tables_have_no_gaps(tmp_path: Path) -> None:
    """A blank line inside would end the table where it is shown."""
    text, _ = write(tmp_path, data={"a": HASH, "b": HASH}, evaluation=card_results(RESULT))
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert [table.count("\n") for table in tables] == [2 + 6, 2 + 2, 2 + 2]
    assert "\n\n\n" not in text


def test_unevaluated_checkpoint_says_so(tmp_path: Path) -> None:
    text, card = write(tmp_path)
    assert section(text, "Evaluation") == "This checkpoint has not been evaluated. `mmalign evaluate` measures it."
    assert card.data.eval_results is None


def test_name_that_yaml_would_misread(tmp_path: Path) -> None:
    _, card = write(tmp_path, model_name="no: # really", license="no", evaluation=card_results(RESULT))
    assert (card.data.model_name, card.data.license) == ("no: # really", "no")


def test_missing_facts_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="the card of shapes-dpo can't be written: architecture is empty; commit is empty; limits is empty$"
    ):
        write(tmp_path, commit="  ", architecture="", limits=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"pairs": "unknown"}}, "data 'pairs' has hash 'unknown', expected the 64 digits of a sha256"),
        ({"kind": "gguf"}, "kind is 'gguf', expected one of full, adapter, contrastive"),
        ({"limits": ["one", ""]}, "a line of limits is empty"),
        ({"commit": None}, "commit is empty"),
        (
            {"evaluation": card_results(RESULT | {"metrics": {"pope/f1": float("nan")}})},
            "pope/f1 is nan, expected a finite number",
        ),
    ],
)
def test_wrong_facts_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        write(tmp_path, **change)


def test_result_without_its_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="the result has no num_answers, data; expected a result file of mmalign evaluate"):
        card_results({"benchmark": "pope", "mode": "official", "metrics": {}})


def test_hash_of_several_files_depends_on_names_and_bytes_not_on_order() -> None:
    def data_hash(data: dict[str, str]) -> str:
        return card_results(RESULT | {"data": data})[0].data_hash

    first, second = "1" * 64, "2" * 64
    assert data_hash({"a": first, "b": second}) == data_hash({"b": second, "a": first})
    assert len({data_hash({"a": first, "b": second}), data_hash({"a": second, "b": first}), data_hash({"a": first, "c": second})}) == 3
    assert data_hash({"a": first}) == first


def test_unknown_name_in_the_template_is_an_error() -> None:
    with pytest.raises(Exception, match="has no attribute 'colour'"):
        fill_template("{{ facts.colour }}", FACTS)


def test_template_of_the_checkout_comes_first_and_the_wheels_copy_second(tmp_path: Path) -> None:
    checkout, package = tmp_path / "checkout", tmp_path / "package"
    with pytest.raises(FileNotFoundError, match=r"no model card template at .*TEMPLATE.md or .*MODEL_CARD.md"):
        find_template(checkout=checkout, package=package)
    for folder, name in ((package / "templates", "MODEL_CARD.md"), (checkout / "model_cards", "TEMPLATE.md")):
        folder.mkdir(parents=True)
        shutil.copy(REPOSITORY / "model_cards" / "TEMPLATE.md", folder / name)
        assert find_template(checkout=checkout, package=package) == folder / name


def test_wheel_takes_the_template_to_where_the_loader_looks() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["model_cards/TEMPLATE.md"] == "mmalign/reports/templates/MODEL_CARD.md"
    assert load_template() == (REPOSITORY / "model_cards" / "TEMPLATE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_code_of_the_card_loads_the_checkpoint(
    kind: str, tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shapes-dpo"
    if kind == "full":
        shutil.copytree(tiny_llava_dir, folder)
    else:
        model, processor = load_mllm(str(tiny_llava_dir))
        adapted = add_lora(model, LoraOptions(lora_rank=2, lora_alpha=4))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.5)
        adapted.save_pretrained(folder)
        processor.save_pretrained(folder)
    names = run_code(folder, tmp_path, monkeypatch, kind=kind)
    new = names["answer"][0, names["inputs"]["input_ids"].shape[1] :]
    assert 0 < len(new) <= 64
    assert capsys.readouterr().out == names["processor"].decode(new, skip_special_tokens=True) + "\n"
    assert any("lora_B" in name for name, _ in names["model"].named_parameters()) == (kind == "adapter")


def test_code_of_the_card_loads_a_contrastive_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "clip", "projection_dim": 16, "vision_config": CLIP_TOWER, "text_config": text}
    (tmp_path / "clip.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer()
    # Its own end token has id 2, which a CLIP text tower misreads.
    tokenizer.eos_token = "<image>"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model, processor = build_or_load_clip(str(tmp_path / "clip.json"), tokenizer=str(tmp_path / "tokenizer"), seed=0)
    model.save_pretrained(tmp_path / "shapes-dpo")
    processor.save_pretrained(tmp_path / "shapes-dpo")
    run_code(tmp_path / "shapes-dpo", tmp_path, monkeypatch, kind="contrastive")
    assert re.match(r"tensor\(\[\[-?[\d.]+, +-?[\d.]+\]\]", capsys.readouterr().out), "one image by two texts"


def run_code(folder: Path, parent: Path, monkeypatch: pytest.MonkeyPatch, *, kind: str) -> dict[str, Any]:
    """Write the card, and run its code beside the folder and an image, as a reader would."""
    text, _ = write(folder, kind=kind)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert "mmalign" not in code
    random_image(0).save(parent / "image.png")
    monkeypatch.chdir(parent)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_results_round_trip_through_the_card(tmp_path: Path) -> None:
    result = CardResult(benchmark="chair", mode="words", metric="chair/sentence", value=0.1 + 0.2, num_answers=7, data_hash=HASH)
    _, card = write(tmp_path, evaluation=[result])
    assert [r.metric_value for r in card.data.eval_results] == [0.1 + 0.2]
