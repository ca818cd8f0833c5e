"""Is it better to be corrected in one's own words? On-policy against off-policy distillation at equal teacher forwards.

    python -m scripts.studies.on_policy --processes 2           # everything
    python -m scripts.studies.on_policy --processes 2 --quick   # one seed, half the steps

The student is the start, whose training captions name absent objects; its teacher is the same start after DPO. Off-policy the teacher
scores the captions of the data, which are as wrong as those that the start has learnt from; on-policy it scores what the student says. Each
row is one forward pass of the teacher. ``--report docs/studies`` writes the published page.
"""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmalign.files import read_json, whole
from scripts.studies.arms import SEARCH_SEED, SEEDS, Arm, Study, Training, cpu_seconds, run_arm_study
from scripts.studies.world import BATCH, CAPTION_NOISE, DPO_STEPS, LONGEST, make_dpo, run

STEPS, RATE = 40, "1e-4"


def _arm(name: str, share: str, divergence: str, *others: str) -> Arm:
    return Arm(name, ("--on-policy", share, "--divergence", divergence), others)


ARMS = (
    _arm("data's captions, forward KL", "0", "forward-kl"),
    _arm("own captions, forward KL", "1", "forward-kl", "data's captions, forward KL"),
    _arm("half own, forward KL", "0.5", "forward-kl", "data's captions, forward KL"),
    _arm("data's captions, reverse KL", "0", "reverse-kl"),
    _arm("own captions, reverse KL", "1", "reverse-kl", "data's captions, reverse KL", "own captions, forward KL"),
)
FORWARDS, TOKENS, SECONDS = "teacher forwards", "tokens sampled", "CPU seconds"
ABOUT = f"""All arms train the same SFT model for {{steps}} steps of {BATCH} captions. The teacher is that model after {DPO_STEPS}
steps of DPO on the world's pairs. Of the data's captions {100 * CAPTION_NOISE:.0f}% name an absent object. `own`: the student's answers to
the same questions, sampled at each step. The learning rate of all is {RATE}; nothing was searched. Each row is one forward pass of the
teacher, and one with gradient of the student. Means over seeds with 95% intervals (Student's t); differences are paired by seed, with no
correction for looking at many. A seed draws start, teacher, scenes and order."""


def make_teacher(training: Training) -> Path:
    """Train a seed's teacher where it is missing; the search has that of its start."""
    seed = SEEDS[0] if training.seed == SEARCH_SEED else training.seed
    return make_dpo(training.out / "teachers" / str(seed), training.start / "sft", seed, smoke=training.smoke)


def make_captions(training: Training) -> Path:
    """Make a seed's chats of one question about a caption, as many as are trained on, where they are missing."""
    folder, number = training.out / "data" / str(training.seed), training.steps * BATCH
    if not (folder / "captions.parquet").is_file():
        # Three chats in four are about a caption.
        run(["world", "build", "--out", folder / "world", "--seed", 3000 + training.seed, "--num-scenes", 2 * number, "--num-pairs", 1,
             "--num-eval-scenes", 1, "--num-workers", 1, "--caption-noise", CAPTION_NOISE])  # fmt: skip
        rows = pq.read_table(folder / "world" / "sft" / "train.parquet")
        captions = rows.filter(pc.equal(pc.list_value_length(rows["messages"]), 2)).slice(0, number)
        with whole(folder / "captions.parquet") as partial_file:
            pq.write_table(captions, partial_file)
    return folder / "captions.parquet"


def train(training: Training) -> dict[str, float]:
    """Distil."""
    teacher, data = make_teacher(training), make_captions(training)
    seconds = cpu_seconds(
        lambda: run(["train", "mimic", "--model", training.start / "sft", "--teacher", teacher, "--data", data, "--out", training.model,
                     "--batch-size", BATCH, "--max-steps", training.steps, "--learning-rate", training.rate, "--warmup-ratio", 0.1,
                     "--sample-tokens", LONGEST["chair"], "--logging-steps", 1, "--seed", training.seed, *training.arm.words])
    )  # fmt: skip
    return {FORWARDS: training.steps * BATCH, TOKENS: count_sampled(training.model, float(training.arm.words[1])), SECONDS: seconds}


def count_sampled(model: Path, share: float) -> float:
    """Count the tokens of own answers; all steps are logged, and the share of own answers in them is that of the run."""
    lengths = [entry["on_policy/length"] for entry in read_json(model / "train_log.json") if "on_policy/length" in entry]
    return share * BATCH * sum(lengths)


STUDY = Study(
    name="on_policy",
    title="On-policy distillation on the embedded world",
    about=ABOUT,
    arms=ARMS,
    train=train,
    steps=STEPS,
    costs=(FORWARDS, TOKENS, SECONDS),
    rates=(RATE,),
)


if __name__ == "__main__":
    run_arm_study(STUDY, __doc__)
