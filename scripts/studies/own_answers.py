"""What is learnt from as many own answers? DisCO, GRPO and online DPO against offline DPO, on the embedded world.

    python -m scripts.studies.own_answers --processes 2           # everything
    python -m scripts.studies.own_answers --processes 2 --quick   # one seed, half the steps

Every arm sees the same questions about new scenes in as many steps, and eight answers to each. Online the model in training gives them
at each step; offline the start has given all of them before, and the best makes a pair with the worst: by the truth, or by questions that
the start asks and answers itself. ``--report docs/studies`` writes the published page.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from data_tools.sample_pairs import SampleOptions
from data_tools.sample_pairs import run as sample_pairs
from mmalign.data.datasets import load_rows
from mmalign.data.shards import read_lines
from mmalign.files import read_json
from scripts.studies.arms import Arm, Study, Training, cpu_seconds, run_arm_study
from scripts.studies.world import LONGEST, run

STEPS, PROMPTS, SAMPLES = 40, 8, 8
OFFLINE, QUESTIONS = "offline DPO", "offline DPO, own questions"
SCORERS = {OFFLINE: "truth", QUESTIONS: "questions"}
# As the start has learnt to be asked: to other words it says neither yes nor no.
ASKED: dict[str, dict[str, Any]] = {"truth": {}, "questions": {"ask": "{question}"}}
# Beta of both DPO arms is the one that the objectives study found best.
DPO = ("--objective", "dpo", "--beta", "1", "--reference", "copy")
ARMS = (
    Arm("GRPO", ("--objective", "grpo"), others=(OFFLINE,)),
    Arm("GRPO, right or wrong", ("--objective", "grpo", "--correct", "1"), others=("GRPO",)),
    Arm("DisCO", ("--objective", "disco", "--correct", "1"), others=("GRPO, right or wrong", OFFLINE)),
    Arm("online DPO", DPO, others=(OFFLINE, "GRPO")),
    Arm(OFFLINE, DPO),
    Arm(QUESTIONS, DPO, others=(OFFLINE,), in_smoke=False),
)
TOKENS, ANSWERS, ALIKE, SECONDS = "tokens sampled", "answers trained on", "groups without a difference %", "CPU seconds"
ABOUT = f"""All arms train the same SFT model for {{steps}} steps of {PROMPTS} questions about captions, each with {SAMPLES} answers at
temperature 1. The reward of an answer is the share of the objects there that it names, less that of absent ones. `right or wrong` and
DisCO: 1 for a caption that names all and nothing else, 0 for others. `offline DPO`: the answers are the start's, and pairs of the best and
the worst are trained on for as many steps of {PROMPTS} pairs; questions whose answers are all alike make no pair, and others are seen
again. `own questions`: the start answers whether each object is there that one of its answers names, and no truth is used. GRPO and DisCO
take one step per sample, so that nothing is clipped and the constraint is 0. Beta of DPO is 1. Means over seeds with 95% intervals
(Student's t); differences are paired by seed, with no correction for looking at many. A seed draws start, scenes, answers and order."""


def make_scenes(training: Training) -> Path:
    """Make a seed's questions where they are missing, one for each place in the run."""
    world = training.out / "data" / str(training.seed)
    if not (world / "world.json").is_file():
        run(["world", "build", "--out", world, "--seed", 1000 + training.seed, "--num-scenes", 1, "--num-pairs", 1, "--num-workers", 1,
             "--num-eval-scenes", training.steps * PROMPTS])  # fmt: skip
    return world / "eval"


def train(training: Training) -> dict[str, float]:
    """Train on own answers, those of each step or those of the start."""
    scenes, scorer = make_scenes(training), SCORERS.get(training.arm.name)
    shared = ["--out", training.model, "--batch-size", PROMPTS, "--max-steps", training.steps, "--learning-rate", training.rate,
              "--warmup-ratio", 0.1, "--logging-steps", 1, "--seed", training.seed, *training.arm.words]  # fmt: skip
    start = training.start / "sft"
    if scorer is None:
        asked = ["--data", scenes / "chair.jsonl", "--image-root", scenes / "images", "--reward", f"objects:{scenes}"]
        drawn = ["--samples", SAMPLES, "--max-new-tokens", LONGEST["chair"]]
        seconds = cpu_seconds(lambda: run(["train", "online", "--model", start, *asked, *drawn, *shared]))
        return read_online(training.model, pairs=training.arm.words == DPO) | {SECONDS: seconds}
    sampled = training.out / "sampled" / f"{scorer}-{training.seed}"
    options = SampleOptions(source=scenes, model=str(start), scorer=scorer, samples=SAMPLES, top_p=1.0, max_new_tokens=LONGEST["chair"],
                            out=sampled, seed=training.seed, **ASKED[scorer])  # fmt: skip
    sampling = cpu_seconds(lambda: sample_pairs(options))
    # Another rate's run may have sampled before.
    kept = sampled / "seconds"
    if not kept.is_file():
        kept.write_text(str(sampling))
    seconds = cpu_seconds(lambda: run(["train", "preference", "--model", start, "--data", sampled / "pairs", *shared]))
    return read_offline(sampled, start, steps=training.steps) | {SECONDS: seconds + float(kept.read_text())}


def read_online(model: Path, *, pairs: bool) -> dict[str, float]:
    """Count what was sampled and trained on at all steps; all steps are logged."""
    steps = [entry for entry in read_json(model / "train_log.json") if "online/length" in entry]
    tokens = sum(entry["online/length"] for entry in steps) * PROMPTS * SAMPLES
    trained = len(steps) * PROMPTS * (2 if pairs else SAMPLES)
    return {TOKENS: tokens, ANSWERS: trained, ALIKE: 100 * sum(entry["online/alike"] for entry in steps) / len(steps)}


def read_offline(sampled: Path, model: Path, *, steps: int) -> dict[str, float]:
    """Count what was sampled, with the ends of turns, and trained on."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = [line for line in read_lines(sorted((sampled / "chunks").glob("*.jsonl"))) if "reason" not in line]
    texts = [text for line in lines for text in line["responses"]]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts)
    return {TOKENS: tokens, ANSWERS: steps * PROMPTS * 2, ALIKE: 100 - 100 * len(load_rows(sampled / "pairs")) / len(lines)}


STUDY = Study(
    name="own_answers",
    title="Learning from own answers on the embedded world",
    about=ABOUT,
    arms=ARMS,
    train=train,
    steps=STEPS,
    costs=(TOKENS, ANSWERS, ALIKE, SECONDS),
)


if __name__ == "__main__":
    run_arm_study(STUDY, __doc__)
