"""What the study of denoisers compares, and its page."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from mmalign.tables import markdown_table
from scripts.studies import page

BASE, CONTROL = "base", "chosen"
COLUMNS = ("F1", "all right", "false kinds", "objects", "diversity")
ABOUT = """All arms of a seed begin at one base and take the same number of steps at one learning rate; nothing was searched. Means over
seeds with 95% intervals (Student's t), in percent but for objects, a number per picture; differences are paired by seed. F1 is of (kind,
colour, place); false kinds are those of the drawn ones that the caption does not name; diversity is the mean difference of pixels between
pictures of one caption. The control is trained on the pairs' chosen pictures alone."""


@dataclass(frozen=True)
class Arm:
    """A way to train on from the base."""

    name: str
    words: tuple[object, ...] = ()
    """Of its command, behind ``mmalign train``; none: the base itself."""
    data: str = "pairs"
    batch: int = 16
    """Rows per step: as many as make the pictures of each step equal in number."""


@dataclass(frozen=True)
class Cell:
    """One arm of one seed."""

    arm: str
    seed: int

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / str(self.seed) / f"{self.arm}.json"


_PREFER = "image-preference"
ARMS = {
    BASE: Arm("base"),
    CONTROL: Arm("more training on chosen (control)", ("denoiser",), CONTROL, 32),
    "dpo": Arm("Diffusion-DPO", (_PREFER, "--beta", 1000)),
    "dpo_sft": Arm("Diffusion-DPO, published beta 200, with an SFT term", (_PREFER, "--beta", 100, "--sft-weight", 1)),
    "inpo": Arm("InPO", (_PREFER, "--beta", 1000, "--noise", "ddim")),
    "smpo": Arm(
        "SmPO",
        (_PREFER, "--objective", "smpo:score_temperature=0.25", "--beta", 2000, "--noise", "renoise", "--inversion-steps", 5),
    ),
    "rank": Arm("RankDPO on four", (_PREFER, "--objective", "rank", "--beta", 1000), "lists", 8),
    "ddo": Arm("DDO, one round", (_PREFER, "--objective", "ddo", "--beta", 100), "own"),
    "d3po": Arm("D3PO, one round", (_PREFER, "--objective", "clipped_dpo", "--noise", "path"), "paths"),
}


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of ``denoisers.md``; what has no finished run is left out."""
    parts = ["```\npython -m scripts.studies.denoisers --out runs/studies/denoisers --processes 2 --report docs/studies\n```", ABOUT]
    runs = page.read_runs(options.out / "cells")
    rows = page.arm_rows(runs, {name: arm.name for name, arm in ARMS.items()}, COLUMNS)
    parts.append(markdown_table(["arm", "seeds", *COLUMNS], rows.values()))
    if CONTROL in runs:
        others = [name for name in ARMS if name in runs and name not in (BASE, CONTROL)]
        differences = [[ARMS[name].name, *(page.compare_metric(runs[name], runs[CONTROL], key) for key in COLUMNS)] for name in others]
        parts += ["Against the control, paired over seeds:", markdown_table(["arm minus control", *COLUMNS], differences)]
    return page.write_measured(options.report / "denoisers.md", "Preferences between pictures on the embedded world", parts)
