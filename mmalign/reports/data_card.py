"""Cards of what is published beside models: scored pairs, and pages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from huggingface_hub import DatasetCardData

from mmalign.data.caches import LOGPS, REFERENCE_FINGERPRINT, REFERENCE_IMAGES, REFERENCE_TEXT, TOKEN_LOGPS
from mmalign.files import SCORED, SCORING, SUMMARY, read_json_object
from mmalign.tables import markdown_table

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
_COLUMNS = {
    "images": "of the prompt",
    "prompt": "turns before the answer",
    "chosen": "the better answer",
    "rejected": "the other one",
    "difficulty": "1 - the proxies' weighted mean of easiness; 0 easy, 1 hard",
    "gap_contrastive": "CLIP cosine of image and answer, a mean over its sentences, chosen minus rejected",
    "gap_generative": "summed log-probability under the multimodal LLM, chosen minus rejected",
    "gap_fused": "sum of weight x gap / std: below zero the proxies together prefer the rejected answer",
    "easiness_contrastive": "place of the gap in the normal distribution of all gaps",
    "easiness_generative": "the same",
    **dict(
        zip(LOGPS, ("summed log-probability of the chosen answer under the multimodal LLM", "the same of the rejected one"), strict=True)
    ),
    **dict(zip(TOKEN_LOGPS, ("the same of each token of the chosen answer", "of each token of the rejected one"), strict=True)),
    REFERENCE_TEXT: "digest of the tokens that were scored",
    REFERENCE_IMAGES: "digest of the decoded images that were scored",
    REFERENCE_FINGERPRINT: "the multimodal LLM: hashes of weights and processor, precision",
}

_MODELS = {"clip": "contrastive model", "mllm": "generative model", "reference": "weights"}


def write_data_card(folder: Path, *, repo: str, license: str | None) -> str:
    """Write the card of scored pairs.

    Args:
        folder: What ``mmalign score-difficulty --out`` wrote.
        repo: OWNER/NAME, for the example.
        license: The Hub's identifier; "unknown" if not given.

    Raises:
        UserError: If a file is missing or damaged.
    """
    summary = read_json_object(folder / SUMMARY)
    made = read_json_object(folder / SCORING) if (folder / SCORING).is_file() else {}
    schema = parquet.read_schema(folder / SCORED)
    data = DatasetCardData(
        license=license or "unknown",
        task_categories=["image-text-to-text"],
        tags=["preference", "dpo", "difficulty", "mmalign"],
        size_categories=[next((name for limit, name in _SIZES if summary["num_scored"] < limit), "n>10M")],
        configs=[{"config_name": "default", "data_files": SCORED}],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo.split('/')[-1]}",
        f"{summary['num_scored']:,} preference pairs with their difficulty (DA-DPO), scored by mmalign; "
        f"{summary['num_rejected']:,} rows were broken and left out.",
        _table_of_proxies(summary),
        *([markdown_table(["scored with", ""], [[f"`{name}`", made[key]] for key, name in _MODELS.items() if key in made], text=(0, 1))]),
        "## Columns",
        markdown_table(["column", "what"], [[f"`{name}`", _COLUMNS.get(name, "")] for name in schema.names], text=(0, 1)),
        "## Use",
        f"```\nhf download {repo} --repo-type dataset --local-dir scored\n"
        f"mmalign train preference --data scored/{SCORED} --difficulty-mode paper --model MODEL --out aligned\n```",
        "TRL reads the same columns: `images`, `prompt`, `chosen`, `rejected`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table_of_proxies(summary: Mapping[str, Any]) -> str:
    rows = [
        [group, name, f"{values['mean']:+.4g}", f"{values['std']:.4g}", f"{100 * values['accuracy']:.1f}", f"{values['weight']:.3f}"]
        for group, found in summary["statistics"].items()
        for name, values in found.items()
    ]
    return markdown_table(["pairs", "proxy", "mean gap", "std", "chosen preferred, %", "weight"], rows, text=(0, 1))


def space_card(*, title: str, first: str) -> str:
    """Write the card of a static Space that shows pages; ``first`` is the one it opens with."""
    return f"---\ntitle: {title}\nsdk: static\napp_file: {first}\npinned: false\n---\n\nPages made by mmalign.\n"
