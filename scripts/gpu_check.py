"""Check mmalign on one large GPU and write docs/performance_gpu.md; ``scripts/gpu_check.sh`` is its command.

Nothing is asked of the network. Every part runs in a process of its own and has its own line in the page, failed or not.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mmalign.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("preference bfloat16", "preference nf4", "scoring bfloat16", "scoring nf4")
# Dense bf16 FLOP/s from the makers' data sheets, by a part of the device's name; a device that is not here gets no utilisation.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
# A token's log-probability of about 10 nats, rounded to bf16's 8 bits of precision.
ROUNDING = 10 * 2**-8
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}


def run(words: list[str], *, limit: float) -> tuple[int, str]:
    """Run a command in the checkout and return its exit code and what it printed; past the limit it is stopped with code 124."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
    print("+", shlex.join(words), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        return 124, f"stopped after {limit:.0f} s"
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def measure(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one arm of the benchmark; a failure is a result too."""
    words = [sys.executable, "scripts/benchmarks/accelerator.py", arm, "--model", options.model, "--device", options.device]
    words += ["--batch-size", str(options.batch_size), "--steps", str(options.steps), "--work", str(options.work.resolve())]
    code, text = run(words, limit=options.limit)
    return json.loads(text.splitlines()[-1]) if code == 0 else {"failed": last_line(text)}


def last_line(text: str) -> str:
    """The last line with words."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")[:200]


def hardware(device: str) -> str:
    """Name the device."""
    if device == "cpu":
        return f"CPU ({platform.machine()}), a check that the script runs and no measurement"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"


def speed_table(results: dict[str, dict[str, Any]], name: str) -> str:
    """Write tokens and pairs per second, peak memory and utilisation."""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    rows = []
    for arm, one in results.items():
        if "failed" in one:
            rows.append([arm, f"failed: {one['failed']}"])
            continue
        seconds, mfu = one["seconds"], "unknown" if peak is None else f"{one['flops'] / one['seconds'] / peak:.1%}"
        rates = f"{one['pairs'] / seconds:.2f}", f"{one['tokens'] / seconds:,.0f}", f"{one['peak']:,.0f}"
        rows.append([arm, f"{seconds:.3f}", *rates, mfu])
    return markdown_table(["arm", "s per step", "pairs/s", "tokens/s", "peak MiB", "MFU"], rows)


def check_tests(options: argparse.Namespace) -> tuple[bool, str]:
    """Run the tests that need a GPU."""
    code, text = run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *options.tests], limit=options.limit)
    if options.device == "cpu":
        # Exit code 5: all were deselected. They are collected, which is as much as there is to see without a GPU.
        code, text = run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--collect-only", *options.tests], limit=options.limit)
    return code == 0, last_line(text)


def check_photos(options: argparse.Namespace) -> tuple[bool, str]:
    """Train from scratch on a world of photographs, and measure POPE."""
    out, small = options.work.resolve() / "photos", options.device == "cpu"
    configs = ROOT / "scripts" / "demo"
    size = {"scenes": 40, "eval": 4, "clip": 2, "sft": 2} if small else {"scenes": 6000, "eval": 100, "clip": 150, "sft": 500}
    photos = shlex.quote(str(options.photos.resolve()))
    worlds = f"world build --out {out}/world --source photos --photos {photos} --num-scenes {size['scenes']}"
    data = f"--batch-size {4 if small else 64} --num-workers {0 if small else 4}"
    steps = [
        f"{worlds} --num-pairs 40 --num-eval-scenes {size['eval']}",
        f"train contrastive --model {configs}/clip.json --tokenizer {out}/world/tokenizer --data {out}/world/captions --out {out}/clip"
        f" {data} --max-steps {size['clip']} --learning-rate 1.5e-3 --warmup-ratio 0.1",
        f"compose --vision {out}/clip --llm {configs}/llm.json --tokenizer {out}/world/tokenizer --vision-feature-layer -2"
        f" --out {out}/mllm",
        f"train sft --model {out}/mllm --data {out}/world/sft --out {out}/sft {data} --max-steps {size['sft']} --optimizer muon"
        " --learning-rate 2e-3 --adam-beta2 0.95 --warmup-ratio 0.1",
        f"evaluate pope --model {out}/sft --data {out}/world/eval --out {out}/eval --max-new-tokens 4 --batch-size 100",
    ]
    begin = time.perf_counter()
    for step in steps:
        code, text = run([sys.executable, "-m", "mmalign", *shlex.split(step)], limit=options.limit)
        if code:
            return False, f"`mmalign {step.split(' --')[0]}` failed: {last_line(text)}"
    metrics = json.loads((out / "eval" / "pope.json").read_text(encoding="utf-8"))["metrics"]
    scores = f"POPE accuracy {metrics['pope/accuracy']:.3f}, F1 {metrics['pope/f1']:.3f}"
    return True, f"{size['sft']} steps of fine-tuning in all {time.perf_counter() - begin:.0f} s with world, CLIP and evaluation; {scores}"


def check_attention(one: dict[str, Any]) -> tuple[bool, str]:
    """FlexAttention may differ from SDPA by twice what shared rows differ from plain ones in bf16, or by what rounding alone may do."""
    if "failed" in one:
        return False, one["failed"]
    flex, noise = one["flex_from_sdpa"], one["sdpa_from_plain"]
    return flex <= max(
        2 * noise, ROUNDING
    ), f"largest difference of {one['tokens']} token log-probs {flex:.2e}; shared from plain rows {noise:.2e}"


def main() -> None:
    """Run all parts, write the page, and end with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="1.5b", help="a shape of scripts/benchmarks/bench.py")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per step")
    parser.add_argument("--steps", type=int, default=8, help="timed steps an arm")
    parser.add_argument("--photos", type=Path, help="parquet of labelled photographs (image, label), such as CIFAR-10's")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu_check"), help="folder of models and runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance_gpu.md", help="the page")
    parser.add_argument("--limit", type=float, default=180.0, help="most seconds a part")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="where the GPU's tests lie")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --device cpu --model tiny shows that the script runs")
    begin, name = time.perf_counter(), hardware(options.device)
    results = {arm: measure(arm, options) for arm in ARMS}
    checks = {"GPU tests": check_tests(options), "FlexAttention equals SDPA": check_attention(measure("attention bfloat16", options))}
    if options.photos is not None:
        checks["photo world"] = check_photos(options)
    rows = [[check, "passed" if passed else "FAILED", text] for check, (passed, text) in checks.items()]
    words = shlex.join(word for word in sys.argv[1:])
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    page = [
        "# Performance on a GPU",
        f"Hardware: {name}; {versions}; {time.perf_counter() - begin:.0f} s in all.",
        f"```\nscripts/gpu_check.sh {words}\n```",
        f"Random LLaVA of shape {options.model}, 576 image tokens, {options.batch_size} pairs per step; LoRA of rank 16, the adapter off "
        "as the reference. Tokens are those that go through the language model, a pair's image and prompt once. MFU (ours): 2 FLOPs a "
        "weight of the language model and token in each pass, 3 passes a preference step and 1 in scoring, over the data sheet's dense "
        "bf16 peak; attention and the vision tower are not counted.",
        speed_table(results, name),
        markdown_table(["check", "result", ""], rows, text=(0, 1, 2)),
    ]
    options.out.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))
    if any("failed" in one for one in results.values()) or not all(passed for passed, _ in checks.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
