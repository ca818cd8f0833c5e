"""What the seeds of the study on photographs compare: arms of preference training from one start, each over the same pairs and steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from scripts.real.run import PREFERENCE_ARMS
from scripts.real.steps import BETA


@dataclass(frozen=True)
class Arm:
    """How the pairs are trained on.

    Attributes:
        name: In tables.
        words: Options of ``train preference``.
        beta: DPO's, or the mean of those that DA-DPO gives the same pairs; the objective's own where it has one.
        shuffled: Whether the difficulties of the pairs are dealt out anew among them.
        adapter: Whether a LoRA adapter and the projector are trained, at ten times the rate; the start below is the reference.
    """

    name: str
    words: str = "--difficulty-mode off"
    beta: Literal["fixed", "matched", "own"] = "fixed"
    shuffled: bool = False
    adapter: bool = False


CONTROL = "sft_more"
"""The start, trained on its chats for as many steps."""
CORE = {**{key: Arm(arm.name, arm.words) for key, arm in PREFERENCE_ARMS.items()}}
# The objective that the study on the embedded world found best, with the strength that it found.
CORE["flex_dpo"] = Arm("flex_dpo", "--objective flex_dpo:beta=1", beta="own")
CONTROLS = {
    "matched_beta": Arm("DPO, mean beta of DA-DPO", beta="matched"),
    "paper_shuffled": Arm("DA-DPO, paper, shuffled", "--difficulty-mode paper", shuffled=True),
    "loss_weight_shuffled": Arm("DA-DPO, loss-weight, shuffled", "--difficulty-mode loss-weight", shuffled=True),
}
ADAPTERS = {
    "lora": Arm("DPO, LoRA 16", "--lora-rank 16", adapter=True),
    "qlora": Arm("DPO, LoRA 16 on NF4", "--lora-rank 16 --quantization nf4", adapter=True),
}
ARMS: Mapping[str, Arm] = {**CORE, **CONTROLS, **ADAPTERS}
NAMES = {CONTROL: "SFT continued", **{key: arm.name for key, arm in ARMS.items()}}
TIERS = ((CONTROL, *CORE), tuple(CONTROLS), tuple(ADAPTERS))
"""The most important first."""

# Of the study of LLaVA-MoD on the embedded world: every third layer of the language model is a "dense" student, which sparse ones grow
# from; every second layer is a "wide" one, with 6% more weights than a token passes through in a sparse one.
STUDENTS = (
    "dense SFT",
    "wide SFT",
    "sparse SFT",
    "dense mimic",
    "wide mimic",
    "sparse mimic",
    "sparse mimic, attention frozen",
    "DPO, teacher as reference",
    "DPO, self as reference",
    "KTO, teacher as reference",
    "KTO, self as reference",
    "KTO, teacher, centred",
)
KEEP_EVERY = {"dense": 3, "wide": 2}


class AxisArm(NamedTuple):
    """An objective from a start, with one part in so many of the pairs that its steps would see."""

    objective: str
    start: str = "sft"
    part: int = 1

    @property
    def name(self) -> str:
        """As its file is called."""
        return f"{self.objective}-{self.start}" + (f"-{self.part}" if self.part > 1 else "")


AXIS_STARTS = {"sft": "SFT (the start)", "none": "a sixth of SFT's steps", "instruct": "SFT, then questions alone"}
AXIS_OBJECTIVES = {
    **{name: f"{name}:beta={BETA}" for name in ("dpo", "ipo", "kto_pair")},
    "simpo": "simpo",
    "cpo": f"cpo:beta={BETA}",
    "flex_dpo": "flex_dpo:beta=1",
}
"""As ``--objective`` is given them, with the strengths of their papers; Flex-DPO's is that of the study on the embedded world."""
AXES = {
    arm.name: arm
    for arm in chain(
        (AxisArm(objective, start) for start in AXIS_STARTS for objective in AXIS_OBJECTIVES),
        (AxisArm(objective, part=part) for part in (3, 10) for objective in AXIS_OBJECTIVES),
    )
}


class OwnArm(NamedTuple):
    """What is learnt from the model's own answers, or from the data's as their control.

    Attributes:
        name: In tables.
        words: Of the command that trains it.
        scorer: Of pairs of the start's answers, with its options; empty where the model in training answers at each step.
        others: Slugs of the arms that it is compared with.
    """

    name: str
    words: str
    scorer: str = ""
    others: tuple[str, ...] = ()


_DPO = f"--objective dpo:beta={BETA} --reference copy"
# As the start has learnt to be asked.
_ASKED = "questions --ask '{question}'"
OWN_ARMS = {
    "offline-dpo": OwnArm("offline DPO", _DPO, "truth"),
    "online-dpo": OwnArm("online DPO", _DPO, others=("offline-dpo",)),
    "grpo": OwnArm("GRPO", "--objective grpo", others=("offline-dpo", "online-dpo")),
    "disco": OwnArm("DisCO", "--objective disco --correct 0.5", others=("offline-dpo", "grpo")),
    "offline-dpo-clip": OwnArm("offline DPO, CLIP", _DPO, "clip", ("offline-dpo",)),
    "offline-dpo-questions": OwnArm(
        "offline DPO, own questions", _DPO, "questions --ask '{question}'", ("offline-dpo", "offline-dpo-clip")
    ),
    "mimic-data": OwnArm("mimic, human captions", "--on-policy 0"),
    "mimic-own": OwnArm("mimic, own captions", "--on-policy 1", others=("mimic-data",)),
}
"""The objectives of ``scripts/studies/own_answers.py`` and ``on_policy.py``."""
