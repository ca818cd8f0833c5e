"""The card of a trained checkpoint: its run's record, told as the folder's README.md."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig, PreTrainedModel

from mmalign.errors import UserError
from mmalign.evaluation.results import name_search
from mmalign.files import RUN_FILE, expected_form, locked, read_json_object
from mmalign.held import PREFIX
from mmalign.methods.registry import find_method
from mmalign.models.load import load_config
from mmalign.models.parameters import ParameterCounts, count_parameters
from mmalign.options.base import Options
from mmalign.reports.model_card import CardFacts, Kind, card_results, write_model_card
from mmalign.runs.run_record import build_record, read_record, write_record

LIMITS = (
    "It was trained on the data above alone; check it on your own images before you rely on it.",
    "It can name objects that are not in the image; the evaluation says how often, where it was measured.",
    "One run with one seed: the spread between seeds is not in this card.",
)
DERIVED_LIMITS = (
    "It has the limits of what it was made of; check it on your own images before you rely on it.",
    LIMITS[1],
)


def write_card(folder: Path) -> Path:
    """Write the card of a finished run from its record.

    Raises:
        ValueError: If the folder holds no finished run.
    """
    record = read_record(folder)
    if "parameters" not in record:
        raise UserError(f"{folder} holds no finished run: its {RUN_FILE} has no parameter counts")
    counts = {key: record.get(key) for key in ("steps", "batch", "num_rows", "num_rejected")}
    counts |= record["parameters"] if isinstance(record["parameters"], dict) else {"parameters": record["parameters"]}
    if odd := {key: value for key, value in counts.items() if not isinstance(value, int)}:
        raise UserError(f"{folder / RUN_FILE} holds {odd}; expected whole numbers, as mmalign train writes them")
    with expected_form(folder / RUN_FILE):
        facts = collect_facts(folder, record)
    return write_model_card(folder, facts)


def write_derived_card(folder: Path, model: PreTrainedModel, options: Options, *, command: str, source: str, summary: str) -> Path:
    """Write the card of a model that was made of another checkpoint without training.

    Args:
        folder: Where it was saved.
        model: What was saved.
        options: The command's.
        command: Its name.
        source: The other checkpoint; where that is a finished run's folder, its data and training stand in the card too.
        summary: What the model is.
    """
    record = build_record(options, method=command, data={})
    run = read_record(Path(source)) if (Path(source) / RUN_FILE).is_file() else {}
    trained = collect_facts(Path(source), run) if "parameters" in run else None
    counts = count_parameters(model)
    facts = CardFacts(
        model_name=folder.resolve().name,
        summary=summary,
        kind="full",
        license=trained.license if trained else _license_of(source),
        language="en",
        started_from=source,
        architecture=_describe_architecture(str(folder)),
        parameters=replace(counts, trainable=counts.total),
        data_description=trained.data_description if trained else f"None here: what {source} was trained on, its own card says.",
        data=trained.data if trained else {},
        recipe=f"{trained.recipe + ' Then ' if trained else ''}`mmalign {command}`, which trains nothing.",
        config={command: record["options"]} | ({"train": trained.config} if trained else {}),
        version=record["mmalign"],
        commit=record["commit"] or "none (installed package)",
        intended_use=trained.intended_use if trained else f"For what {source} is for.",
        limits=LIMITS if trained else DERIVED_LIMITS,
        tags=[*(trained.tags if trained else []), command],
    )
    return write_model_card(folder, facts)


def add_result(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """Put a result of ``mmalign evaluate`` into the record and the card; None where the folder is no run of mmalign.

    A result of the same benchmark, mode, variant and search is replaced.
    """
    if not (folder / RUN_FILE).is_file():
        return None
    with locked(folder):
        record = read_record(folder)
        kept = [other for other in record.get("evaluation", []) if _kind_of(other) != _kind_of(result)]
        record["evaluation"] = sorted([*kept, dict(result)], key=_kind_of)
        write_record(folder, record)
        return write_card(folder)


def _kind_of(result: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return result["benchmark"], result["mode"], result.get("variant") or "", name_search(result) or ""


def collect_facts(folder: Path, record: Mapping[str, Any]) -> CardFacts:
    """Turn a run's record into the card's facts."""
    options, method = record["options"], find_method(record["method"], record["options"])
    start = options["model"]
    is_adapter, in_memory = bool(options.get("lora_rank")), start.startswith(PREFIX)
    kind: Kind = "contrastive" if method.name == "contrastive" else "adapter" if is_adapter else "full"
    return CardFacts(
        model_name=folder.resolve().name,
        summary=f"This is {method.summary}{method.describe(options)}.",
        kind=kind,
        license=options.get("license") or _license_of(start),
        language="en",
        started_from=f"random weights of the config {start}" if start.endswith(".json") else start,
        architecture=_name_held(start) if is_adapter and in_memory else _describe_architecture(start if is_adapter else str(folder)),
        parameters=ParameterCounts(**record["parameters"]),
        data_description=_describe_data(record),
        data=record["data"],
        recipe=" ".join(filter(None, (_recipe(record), record.get("answer_end")))),
        config=options,
        version=record["mmalign"],
        commit=record["commit"] or "none (installed package)",
        intended_use=method.intended_use,
        limits=LIMITS,
        evaluation=[row for result in record.get("evaluation", []) for row in card_results(result)],
        base_model=start if is_adapter and not in_memory else None,
        tags=[method.name],
    )


def _recipe(record: Mapping[str, Any]) -> str:
    return f"`mmalign train {record['method']}`, {record['steps']:,} optimiser steps of {record['batch']:,} rows."


def _license_of(start: str) -> str:
    """The licence passes from the model that training began with; the Hub's word for none known is "unknown"."""
    card = Path(start) / "README.md"
    if not card.is_file():
        return "unknown"
    return ModelCard.load(card, ignore_metadata_errors=True).data.license or "unknown"


def _describe_architecture(source: str) -> str:
    config = load_config(source)
    name = (config.architectures or [type(config).__name__])[0]
    parts = [_describe_part(getattr(config, part)) for part in ("vision_config", "text_config") if hasattr(config, part)]
    return f"{name} ({'; '.join(parts)})" if parts else name


def _name_held(start: str) -> str:
    """The class of a model that was in memory, whose config may be gone."""
    return start.removeprefix(PREFIX).rpartition("-")[0]


def _describe_part(config: PreTrainedConfig) -> str:
    name = getattr(config, "architecture", None) or config.model_type
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    return name if layers is None else f"{name}, {layers} layers of width {width}"


def _describe_data(record: Mapping[str, Any]) -> str:
    data = Path(record["options"]["data"])
    used, rejected = record["num_rows"] - record["num_rejected"], record["num_rejected"]
    counts = f"{used:,} rows of {data}" + (f"; {rejected:,} broken ones were left out." if rejected else ".")
    worlds = [folder / "world.json" for folder in (data, data.parent) if (folder / "world.json").is_file()]
    if not worlds:
        return counts
    world = read_json_object(worlds[0])["config"]
    return (
        f"{counts} They are of mmalign's embedded world of {world['source']} (seed {world['seed']}): made images with known content, "
        f"in which {world['caption_noise']:.0%} of the training descriptions name an absent object where one is likely."
    )
