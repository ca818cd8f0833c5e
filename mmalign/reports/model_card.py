"""Model cards: the template, filled with a checkpoint's facts, as the checkpoint folder's README.md."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from mmalign.errors import UserError
from mmalign.evaluation.results import name_search
from mmalign.files import write_whole
from mmalign.models.parameters import ParameterCounts

Kind = Literal["full", "adapter", "contrastive", "classifier", "denoiser"]
_PIPELINES: dict[Kind, str] = {
    "full": "image-text-to-text",
    "adapter": "image-text-to-text",
    "contrastive": "zero-shot-image-classification",
    "classifier": "image-classification",
    "denoiser": "text-to-image",
}
_LIBRARIES: dict[Kind, str] = {
    "full": "transformers",
    "adapter": "peft",
    "contrastive": "transformers",
    "classifier": "mmalign",
    "denoiser": "diffusers",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class CardResult:
    """A metric of a benchmark.

    Attributes:
        benchmark: "pope", "chair".
        mode: How answers were read, and what else the score depends on: "official", "official, wordnet".
        metric: Key, "pope/random/f1".
        value: Of the metric.
        num_answers: Behind the benchmark's metrics.
        data_hash: sha256 of the benchmark's file; of all files' names and hashes where there are several.
    """

    benchmark: str
    mode: str
    metric: str
    value: float
    num_answers: int
    data_hash: str


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. Nothing may be empty except ``evaluation`` (the card then says so), ``data`` where nothing was trained, and
    ``base_model``.

    Attributes:
        model_name: Name of the checkpoint; with ``evaluation`` it heads the Hub's result index.
        summary: What the model is, in a sentence or two.
        kind: Full weights or a LoRA adapter of a multimodal LLM, a contrastive image-text model, a classifier or a text-to-image pipeline:
            decides how it is loaded.
        license: The Hub's identifier, "apache-2.0".
        language: ISO 639 code.
        started_from: What training began with: random weights, a folder, a hub id.
        architecture: Class and sizes.
        parameters: Counts.
        data_description: What the data are.
        data: File -> sha256 of what it was trained on.
        recipe: Method and command.
        config: The resolved options.
        version: Of mmalign.
        commit: Of the code; say "none (installed package)" where there is no checkout.
        intended_use: What for.
        limits: What not for, one per line.
        evaluation: Results, or none yet.
        base_model: Hub id of the model it derives from, for the metadata.
        tags: More tags for the metadata.
    """

    model_name: str
    summary: str
    kind: Kind
    license: str
    language: str
    started_from: str
    architecture: str
    parameters: ParameterCounts
    data_description: str
    data: Mapping[str, str]
    recipe: str
    config: Mapping[str, Any]
    version: str
    commit: str
    intended_use: str
    limits: Sequence[str]
    evaluation: Sequence[CardResult] = ()
    base_model: str | None = None
    tags: Sequence[str] = ()


def write_model_card(folder: Path, facts: CardFacts) -> Path:
    """Fill the template and write it as the folder's README.md.

    Raises:
        ValueError: If a fact is empty, a hash is none, or a result is no finite number; all of them are named.
    """
    _check_facts(facts)
    path = folder / "README.md"
    write_whole(path, fill_template(load_template(), facts))
    return path


def card_results(result: Mapping[str, Any]) -> list[CardResult]:
    """Turn a result file of ``mmalign evaluate`` (the parsed JSON) into the card's rows, one per metric.

    Raises:
        ValueError: If a field is missing.
    """
    missing = [key for key in ("benchmark", "mode", "metrics", "num_answers", "data") if key not in result]
    if missing:
        raise UserError(f"the result has no {', '.join(missing)}; expected a result file of mmalign evaluate")
    mode = ", ".join(part for part in (result["mode"], result.get("variant"), name_search(result)) if part)
    common = {
        "benchmark": result["benchmark"],
        "mode": mode,
        "num_answers": result["num_answers"],
        "data_hash": _join_hashes(result["data"]),
    }
    return [CardResult(**common, metric=key, value=value) for key, value in result["metrics"].items()]


def load_template() -> str:
    """Read the template: the checkout's own, or the copy that a wheel carries."""
    return find_template(checkout=Path(__file__).resolve().parents[2], package=resources.files("mmalign.reports")).read_text(
        encoding="utf-8"
    )


def find_template(*, checkout: Path, package: Traversable) -> Traversable:
    """Return the template of a checkout, else that of an installed package.

    Raises:
        FileNotFoundError: If neither is there.
    """
    candidates: tuple[Traversable, ...] = (checkout / "model_cards" / "TEMPLATE.md", package / "templates" / "MODEL_CARD.md")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no model card template at {candidates[0]} or {candidates[1]}; install mmalign again")


def fill_template(template: str, facts: CardFacts) -> str:
    """Render the card; a name in the template that is no fact is an error."""
    # Markdown, not HTML: nothing to escape but what would break a table.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    config = yaml.safe_dump(dict(facts.config), sort_keys=True, allow_unicode=True).rstrip()
    return environment.from_string(template).render(facts=facts, metadata=_build_metadata(facts).to_yaml(), config=config)


def _build_metadata(facts: CardFacts) -> ModelCardData:
    return ModelCardData(
        model_name=facts.model_name,
        license=facts.license,
        language=facts.language,
        library_name=_LIBRARIES[facts.kind],
        pipeline_tag=_PIPELINES[facts.kind],
        base_model=facts.base_model,
        tags=["mmalign", *facts.tags],
        eval_results=[_eval_result(facts, result) for result in facts.evaluation] or None,
    )


def _eval_result(facts: CardFacts, result: CardResult) -> EvalResult:
    return EvalResult(
        task_type=_PIPELINES[facts.kind],
        dataset_type=result.benchmark,
        dataset_name=f"{result.benchmark} ({result.mode})",
        # What the index groups metrics by, beside the kind and the revision.
        dataset_config=result.mode,
        dataset_revision=result.data_hash,
        metric_type=result.metric,
        metric_name=result.metric,
        metric_value=result.value,
    )


def _check_facts(facts: CardFacts) -> None:
    may_be_empty = {"data", "evaluation", "base_model", "tags"}
    wrong = [f"{f.name} is empty" for f in dataclasses.fields(facts) if f.name not in may_be_empty and _is_blank(getattr(facts, f.name))]
    wrong += ["a line of limits is empty" for limit in facts.limits if _is_blank(limit)]
    wrong += [
        f"data {name!r} has hash {digest!r}, expected the 64 digits of a sha256"
        for name, digest in facts.data.items()
        if not _is_hash(digest)
    ]
    wrong += [
        f"{result.metric} is {result.value}, expected a finite number" for result in facts.evaluation if not math.isfinite(result.value)
    ]
    wrong += [f"kind is {facts.kind!r}, expected one of {', '.join(_PIPELINES)}"] if facts.kind not in _PIPELINES else []
    if wrong:
        raise UserError(f"the card of {facts.model_name or 'a model'} can't be written: {'; '.join(wrong)}")


def _is_blank(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and not len(value)) or (isinstance(value, str) and not value.strip())


def _is_hash(digest: Any) -> bool:
    return isinstance(digest, str) and _SHA256.fullmatch(digest) is not None


def _join_hashes(data: Mapping[str, str]) -> str:
    if len(data) == 1:
        return next(iter(data.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(data.items()))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()
