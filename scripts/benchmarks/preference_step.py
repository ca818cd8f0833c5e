"""Time and memory of one preference step, against TRL's DPOTrainer on the same model and pairs.

    pip install -e '.[benchmark]'
    python scripts/benchmarks/preference_step.py --model v32k

Process CPU time is compared, not wall time. TRL runs as shipped (without Triton it scores every position) and "compact", scoring response
positions only, as it does on CUDA; that one choice is forced by a patch. A cached reference is emulated for TRL by handing it
constants: on images it refuses to precompute.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from bench import build_pairs, make_parser, report, resident, run_arms, runnable, start_peak, versions

from mmalign.data.caches import REFERENCE_FINGERPRINT, cache_pair
from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.difficulty.generative import score_generative
from mmalign.engine.logps import ResponseLogps
from mmalign.losses.scores import ScoredTokens
from mmalign.methods import responses
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.adapters import add_lora
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from mmalign.options.training import LoraOptions, TrainerOptions
from mmalign.tables import markdown_table
from mmalign.training.arguments import build_training_arguments
from mmalign.training.trainer import MethodTrainer

ARMS = (
    "ours live", "ours cached", "TRL compact live", "TRL compact cached", "TRL shipped live", "TRL shipped cached", "full logits live"
)  # fmt: skip
LORA = LoraOptions(lora_rank=16, lora_alpha=32)


class Clock(transformers.TrainerCallback):
    """CPU seconds of each step after the warm-up, and the peak of memory: in all, and what a step adds to what lies there anyway.

    What lies there is the process with its libraries, weights, reference and optimiser states; a step adds activations, logits,
    gradients.
    """

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.marks: list[float] = []
        self.resting = 0.0
        self.peak = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warmup - 1:
            self.resting = start_peak()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(time.process_time())
        self.peak = resident("VmHWM")

    def result(self) -> dict[str, Any]:
        """CPU seconds of each step; peak resident memory, and what a step adds, in MiB."""
        seconds = [b - a for a, b in pairwise(self.marks[self.warmup - 1 :])]
        return {"seconds": seconds, "peak": self.peak, "added": self.peak - self.resting}


def cache_row(raw: dict[str, Any], model: Any, processor: Any) -> dict[str, Any]:
    """Compute the reference's columns of one pair, as ``mmalign cache-logps`` does."""
    row = read_pair(raw, index=0)
    encoded = encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected])
    chosen, rejected = score_generative(model, [encoded], pad_token_id=processor.tokenizer.pad_token_id)[0]
    return {**cache_pair(encoded, chosen, rejected), REFERENCE_FINGERPRINT: "this model"}


def score_full_logits(model: Any, batch: dict[str, Any], *, features: Any = None, keep_states: bool = False) -> ResponseLogps:
    """Score as trainers without a fused head do: one row per response, its image encoded again, logits of all positions in float32."""
    layout = batch["layout"]
    inputs = {key: value for key, value in batch.items() if key not in ("layout", "images")}
    pixels = batch["images"]["pixel_values"].repeat_interleave(layout["repeats"], 0)
    logps = model(**inputs, pixel_values=pixels, use_cache=False).logits.float().log_softmax(-1)
    chosen = logps.flatten(0, 1)[layout["index"]].gather(-1, layout["target"][:, None]).squeeze(-1)
    scored = ScoredTokens(layout["response"], int(layout["repeats"].sum()), layout["target"])
    return ResponseLogps(sums=scored.sums(chosen), token_logps=chosen, scored=scored)


def run_ours(options: argparse.Namespace, *, cached: bool, full_logits: bool = False) -> dict[str, Any]:
    """Train with mmalign's engine, or with its trainer and full logits."""
    model, processor = load_mllm(options.folder, dtype="float32")
    policy = add_lora(model, LORA) if options.lora else model
    reference = None if cached else Reference(policy, kind="adapter-off" if options.lora else "copy")
    if full_logits:
        responses.compute_response_logps = score_full_logits
    method = PreferenceMethod(processor, PairLossOptions(), reference=reference, reference_fingerprint="this model")
    method.shared = not full_logits
    pairs = build_pairs(8 * options.batch_size)
    if cached:
        pairs = pairs.map(lambda row: cache_row(row, model, processor))
    steps = options.warmup + options.steps
    config = TrainerOptions(learning_rate=1e-5, batch_size=options.batch_size, max_steps=steps, logging_steps=1000, save_steps=1000)
    arguments = build_training_arguments(config, output_dir=Path(options.folder) / "out")
    clock = Clock(options.warmup)
    trainer = MethodTrainer(model=policy, args=arguments, train_dataset=method.prepare(pairs), method=method, callbacks=[clock])
    if not options.profile:
        trainer.train()
        return clock.result()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.train()
    return {"profile": profile_table(profile)}


def profile_table(profile: Any, *, rows: int = 14) -> str:
    """Write the operations that take longest as a Markdown table."""
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    lines = [(f"`{event.key}`", f"{event.self_cpu_time_total / total:.1%}", event.count) for event in events[:rows]]
    return markdown_table(["operation", "share of CPU time", "calls"], lines)


def run_trl(options: argparse.Namespace, *, cached: bool, compact: bool) -> dict[str, Any]:
    """Train with TRL's DPOTrainer."""
    import trl.trainer.utils
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    if compact:
        trl.trainer.utils._use_triton = lambda device: True
    model, processor = load_mllm(options.folder, dtype="float32")
    leaves = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    adapter = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=rf".*language_model.*({leaves})") if options.lora else None
    arguments = DPOConfig(
        output_dir=f"{options.folder}/out", per_device_train_batch_size=options.batch_size, max_steps=options.warmup + options.steps,
        max_length=None, bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", logging_steps=1000,
        save_strategy="no", learning_rate=1e-5, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    pairs, clock = build_pairs(8 * options.batch_size), Clock(options.warmup)
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=pairs, processing_class=processor, peft_config=adapter, callbacks=[clock]
    )
    if cached:
        collate = trainer.data_collator

        def with_constants(rows: Any) -> Any:
            constant = torch.full((len(rows),), -900.0)
            return {**collate(rows), "ref_chosen_logps": constant, "ref_rejected_logps": constant}

        trainer.data_collator, trainer.precompute_ref_logps, trainer.ref_model = with_constants, True, None
    trainer.train()
    return clock.result()


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Run one arm in this process."""
    kind, cached = options.arm.rsplit(" ", 1)[0], options.arm.endswith("cached")
    if kind in ("ours", "full logits"):
        return run_ours(options, cached=cached, full_logits=kind == "full logits")
    return run_trl(options, cached=cached, compact=kind == "TRL compact")


QUANTITIES = {"seconds": "time", "peak": "peak", "added": "added"}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Write the Markdown table: medians over all steps, their spread, and how many times ours the others need."""
    steps = {arm: sorted(value for run in runs for value in run["seconds"]) for arm, runs in results.items()}
    medians = {arm: {"seconds": statistics.median(values)} for arm, values in steps.items()}
    for arm, runs in results.items():
        medians[arm] |= {key: statistics.median(run[key] for run in runs) for key in ("peak", "added")}
    ours = [arm for arm in results if arm.startswith("ours")]
    rows = []
    for arm, own in medians.items():
        ratios = [f"{own[key] / medians[base][key]:.2f}" for key in QUANTITIES for base in ours]
        spread = f"{steps[arm][0]:.2f} to {steps[arm][-1]:.2f}"
        rows.append([arm, f"{own['seconds']:.2f}", spread, f"{own['peak']:.0f}", f"{own['added']:.0f}", *ratios])
    heads = [f"{what} / {arm.removeprefix('ours ')}" for what in QUANTITIES.values() for arm in ours]
    return markdown_table(["arm", "CPU s", "range", "peak MiB", "added MiB", *heads], rows, text=(0, 2))


def main() -> None:
    """Run one arm, or compare them all."""
    parser = make_parser(__doc__)
    parser.add_argument("--lora", action="store_true", help="LoRA of rank 16 on the language model instead of full weights")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=runnable(ARMS), help="all that can run, if not given")
    parser.add_argument("--profile", action="store_true", help="profile the first arm instead of timing")
    options = parser.parse_args()
    results = run_arms(options, run_arm)
    title = f"{options.model}, {'LoRA' if options.lora else 'full weights'}, {options.batch_size} pair(s) per step"
    title += f", profile of {options.arms[0]}" if options.profile else ""
    body = results[options.arms[0]][0]["profile"] if options.profile else table(results)
    report(title, f"{options.rounds} rounds of {options.steps} steps; {versions(options.arms)}.", body, write=options.write)


if __name__ == "__main__":
    main()
