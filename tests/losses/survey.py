"""Each objective on the axes of "A Survey of Direct Preference Optimization" (arXiv:2503.11701): a table of docs/objectives.md.

    python -m tests.losses.survey --write

writes the table. ``test_survey.py`` holds the page to it, and the tags to what the objectives are.
"""

import textwrap
from pathlib import Path
from typing import NamedTuple

from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.tables import markdown_table
from tests.written_pages import WrittenPart

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"
PART = WrittenPart(PAGE, "<!-- the survey begins: python -m tests.losses.survey --write -->", "<!-- the survey ends -->")
STAR = "*"
"""Behind a tag: the survey's list of papers has the objective's own paper there."""


class Tags(NamedTuple):
    """One cell for each axis: a tag, or several with commas."""

    data: str
    framework: str
    constraint: str
    model: str


AXES = Tags("data strategy", "learning framework", "constraint mechanism", "model property")
MEANINGS: dict[str, dict[str, str]] = {
    AXES.data: {
        "point-wise": "each response on its own",
        "pair-wise": "chosen against rejected",
        "list-wise": "several responses of a prompt",
        "distinguishability": "scores say how far apart responses are",
        "noise": "labels may be wrong",
        "token": "some tokens count more",
        "step": "a step of the answer at a time",
        "images": "compares answers given another image: ours, the survey is of text",
        "heterogeneity": "annotators who disagree",
        "turn": "turns of a dialogue",
    },
    AXES.framework: {
        "offline": "rows that are there before",
        "online": "the policy's own samples, labelled on the way",
        "self-play": "the policy against its own samples",
        "multi-objective": "several aims at once",
        "active": "chooses what is labelled",
    },
    AXES.constraint: {
        "fixed": "one reference for the whole training",
        "dynamic": "the policy that sampled is the reference",
        "free": "no reference",
        "diversity": "another divergence, for varied answers",
        "generalization": "another constraint, against overfitting",
        "safety": "a limit on harm",
    },
    AXES.model: {
        "none": "nothing in the formula for either",
        "length": "length divided out, or long tails weighted less",
        "likelihood": "the chosen answer is kept likely",
        "distribution": "answers unlike the training's",
        "alignment": "what alignment costs other abilities",
    },
}
TAGS: dict[str, Tags] = {
    "dpo": Tags("pair-wise*", "offline*", "fixed", "none"),
    "cdpo": Tags("pair-wise, noise", "offline", "fixed", "none"),
    "rdpo": Tags("pair-wise, noise*", "offline", "fixed", "none"),
    "ipo": Tags("pair-wise*", "offline", "fixed", "length"),
    "hinge": Tags("pair-wise", "offline", "fixed", "none"),
    "fdpo": Tags("pair-wise", "offline", "fixed, diversity*", "none"),
    "clipped_dpo": Tags("pair-wise", "offline", "fixed, generalization", "length"),
    "flex_dpo": Tags("pair-wise", "offline", "fixed", "likelihood*"),
    "madpo": Tags("pair-wise, distinguishability", "offline", "fixed", "none"),
    "ld_dpo": Tags("pair-wise", "offline", "fixed", "length*"),
    "asft": Tags("point-wise", "offline", "free", "length, likelihood"),
    "orpo": Tags("pair-wise", "offline*", "free*", "length, likelihood"),
    "simpo": Tags("pair-wise", "offline", "free*", "length*"),
    "cpo": Tags("pair-wise", "offline*", "free*", "likelihood"),
    "kto_pair": Tags("point-wise*", "offline", "fixed", "none"),
    "dno": Tags("pair-wise, distinguishability", "online, self-play*", "fixed", "none"),
    "smpo": Tags("pair-wise, distinguishability", "offline", "fixed", "none"),
    "step_dpo": Tags("pair-wise, step*", "online*", "fixed", "none"),
    "adpo_pair": Tags("pair-wise, distinguishability", "offline", "fixed", "none"),
    "ddo": Tags("point-wise", "self-play", "fixed", "none"),
    "hsa_dpo": Tags("pair-wise, distinguishability", "offline", "fixed", "none"),
    "mm_dpo": Tags("pair-wise, distinguishability", "offline", "fixed", "none"),
    "ddpo": Tags("pair-wise, token", "offline", "fixed", "none"),
    "nll": Tags("point-wise", "offline", "free", "length, likelihood"),
    "mpo": Tags("pair-wise, point-wise", "offline, multi-objective", "fixed", "likelihood"),
    "mdpo": Tags("pair-wise, images", "offline", "fixed", "likelihood"),
    "anchor": Tags("point-wise", "offline", "fixed", "likelihood"),
    "svco": Tags("pair-wise, images", "offline", "fixed", "none"),
    "symmpo": Tags("pair-wise, images", "offline", "fixed", "likelihood"),
    "opa": Tags("pair-wise, images", "offline", "fixed", "likelihood"),
    "chip": Tags("pair-wise, token, images", "offline", "fixed", "none"),
    "vdpo": Tags("pair-wise, images", "offline", "fixed", "none"),
    "tpo_token": Tags("pair-wise, token, images", "offline", "fixed", "none"),
    "adpo": Tags("list-wise, distinguishability", "offline", "fixed", "none"),
    "plackett_luce": Tags("list-wise", "offline", "fixed", "none"),
    "irpo": Tags("list-wise", "offline", "fixed", "length"),
    "tpo": Tags("list-wise, step*", "offline", "fixed", "length"),
    "rank_dpo": Tags("list-wise, distinguishability", "offline", "fixed", "none"),
    "disco": Tags("list-wise", "online", "dynamic", "length"),
    "disco_b": Tags("list-wise", "online", "dynamic", "length"),
    "grpo": Tags("list-wise", "online", "dynamic", "none"),
}


def names() -> list[str]:
    """All names that ``--objective`` takes: objectives of pairs, sums of them, objectives of lists."""
    return [*PAIR_OBJECTIVES.names(), *PAIR_OBJECTIVES.sums(), *LIST_OBJECTIVES.names(), *LIST_OBJECTIVES.sums()]


def words(cell: str) -> list[str]:
    """The tags of a cell, without their stars."""
    return [tag.removesuffix(STAR) for tag in cell.split(", ")]


def write_survey() -> str:
    """Lay out what the tags mean, which of the survey's have no objective, and the table."""
    legend, missing = [], []
    for axis, (name, meanings) in enumerate(MEANINGS.items()):
        used = {tag for tags in TAGS.values() for tag in words(tags[axis])}
        legend += _wrap(f"- **{name}**: " + "; ".join(f"{tag} ({meanings[tag]})" for tag in meanings if tag in used) + ".")
        missing += [f"{tag} ({meaning})" for tag, meaning in meanings.items() if tag not in used]
    rows = [[f"`{name}`", *(cell.replace(STAR, "\\*") for cell in TAGS[name])] for name in names()]
    table = markdown_table(["name", *AXES], rows, text=range(1 + len(AXES)))
    nothing = _wrap(f"- **No objective here** for the survey's {', '.join(missing)}.")
    return "\n".join([*legend, *nothing, "", table])


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, 138, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PART.run(write_survey, __doc__)
