"""Benchmarks of reward models as pairs: ``source`` names a row's group, by which ``mmalign score-rewards`` counts.

The fields that each function reads, and where they were looked up, are listed in docs/rewards.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

from data_tools.fields import assistant, field, fields_of, images_of, join_source, user
from data_tools.pair_sets import Pair
from mmalign.errors import UserError

VL_GROUPS = {
    "mathverse": "reasoning",
    "mmmu": "reasoning",
    "hallucination": "hallucination",
    "rlhf": "hallucination",
    "rlaif": "hallucination",
    "wildvision": "general",
    "vlfeedback": "general",
}
"""What an id of VL-RewardBench begins with; others are general."""
SIDES = ("Output1", "Output2")
MM_RLHF_GROUPS = ("mcq", "long", "short", "safety", "video")
"""Words in the path of MM-RLHF-RewardBench's images, in the order in which its script looks for them."""


def vl_rewardbench(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """VL-RewardBench (arXiv:2411.17451): two responses, and the rank of each, 0 for the better one."""
    row_id = str(field(record, "id", (str, int)))
    responses, ranks = field(record, "response", list), field(record, "human_ranking", list)
    if len(responses) != 2 or sorted(ranks) != [0, 1] or not all(isinstance(text, str) for text in responses):
        raise UserError(f"{len(responses)} responses with ranks {ranks}; expected two texts with ranks 0 and 1{fields_of(record)}")
    group = VL_GROUPS.get(row_id.partition("-")[0].partition("_")[0].lower(), "general")
    better, worse = (responses[ranks.index(rank)] for rank in (0, 1))
    return [_pair(record, row_id, join_source("vl-rewardbench", group), "image", "query", better, worse)]


def multimodal_rewardbench(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """Multimodal RewardBench (arXiv:2502.14191): ``Better`` names one of two outputs; safety and reasoning are parted by the id."""
    row_id, better = field(record, "ID", str), record.get("Better")
    if better not in SIDES:
        raise UserError(f"Better is {better!r}; expected {' or '.join(SIDES)}{fields_of(record)}")
    group = field(record, "Category", str)
    if group == "safety":
        group = "safety/bias" if row_id.lower().startswith("pairs") else "safety/toxicity"
    elif group == "reasoning":
        group = "reasoning/math" if row_id.lower().startswith("math") else "reasoning/coding"
    chosen, rejected = (field(record, name, str) for name in (SIDES if better == SIDES[0] else reversed(SIDES)))
    return [_pair(record, row_id, join_source("multimodal-rewardbench", group), "Image", "Text", chosen, rejected)]


def mm_rlhf_rewardbench(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """MM-RLHF-RewardBench (arXiv:2502.10391): a question's pairs have one id; the path of its image names the group."""
    if record.get("video") is not None:
        raise UserError("the record has a video, which can't be read")
    image = field(record, "image", str)
    group = next((name for name in MM_RLHF_GROUPS if name in image), "other")
    chosen, rejected = (field(record, name, str) for name in ("chosen", "rejected"))
    return [
        _pair(record, str(record.get("id", default_id)), join_source("mm-rlhf-rewardbench", group), "image", "prompt", chosen, rejected)
    ]


def _pair(record: Mapping[str, Any], row_id: str, source: str, image: str, question: str, chosen: str, rejected: str) -> Pair:
    images = images_of(record, image)
    return Pair(row_id, source, images, user(field(record, question, str), images), assistant(chosen), assistant(rejected))


REWARD_BENCHMARKS: dict[str, Callable[[Mapping[str, Any], str], list[Pair]]] = {
    "vl-rewardbench": vl_rewardbench,
    "multimodal-rewardbench": multimodal_rewardbench,
    "mm-rlhf-rewardbench": mm_rlhf_rewardbench,
}
