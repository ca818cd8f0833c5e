"""Memory and time of the distillation loss by vocabulary size: in chunks from hidden states, against full logits of both models.

    python scripts/benchmarks/divergence_memory.py --write

Forward KL and its gradient, student and teacher heads of the given widths, one thread, each case in a process of its own. What the
weights and their gradients take grows with the vocabulary in both ways and is left out: "added" is the peak above it.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from workload import ENVIRONMENT, resident, write_section

from mmalign.engine.divergence import Head, linear_divergence

ARMS = ("ours", "full logits")


def run_case(arm: str, vocab: int, options: argparse.Namespace) -> dict[str, float]:
    """Compute loss and gradients once for warming up, then measure."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.student_width, requires_grad=True)
    taught = torch.randn(options.tokens, options.teacher_width)
    weight = (torch.randn(vocab, options.student_width) * 0.05).requires_grad_()
    teacher = torch.randn(vocab, options.teacher_width) * 0.05
    weight.grad = torch.zeros_like(weight)

    def step() -> float:
        if arm == "ours":
            loss = linear_divergence(hidden, Head(weight), taught, Head(teacher)).sum()
        else:
            log_q, log_p = F.log_softmax(hidden @ weight.t(), -1), F.log_softmax(taught @ teacher.t(), -1)
            loss = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
        loss.backward()
        return loss.item()

    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resting, start = resident("VmRSS"), time.process_time()
    loss = step()
    seconds = time.process_time() - start
    # One gradient of the head exists before it is added to what is there.
    own = weight.numel() * 4 / 2**20
    return {"seconds": seconds, "added": resident("VmHWM") - resting - own, "loss": loss}


def main() -> None:
    """Run one case, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="scored tokens of a step")
    parser.add_argument("--student-width", type=int, default=256)
    parser.add_argument("--teacher-width", type=int, default=512)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 64_000, 128_000, 256_000])
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options.case[0], int(options.case[1]), options)))
        return
    lines = ["| vocabulary | " + " | ".join(f"{arm}: added MiB | CPU s" for arm in ARMS) + " |", "|---:|" + "---:|---:|" * len(ARMS)]
    for vocab in options.vocabularies:
        results = []
        for arm in ARMS:
            words = [sys.executable, *sys.argv, "--case", arm, str(vocab)]
            done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **ENVIRONMENT})
            results.append(json.loads(done.stdout.splitlines()[-1]))
        assert abs(results[0]["loss"] / results[1]["loss"] - 1) < 1e-4, results
        lines.append(f"| {vocab:,} | " + " | ".join(f"{r['added']:.0f} | {r['seconds']:.2f}" for r in results) + " |")
    words = " ".join(word for word in sys.argv[1:] if word != "--write")
    about = (
        f"Forward KL with gradient over {options.tokens} tokens, widths {options.student_width} and {options.teacher_width}, one thread "
        f"of {platform.machine()}, float32. Peak memory above the weights and their gradients."
    )
    title = "### Distillation loss by vocabulary"
    table = "\n".join(lines)
    text = f"{title}\n\n```\npython scripts/benchmarks/divergence_memory.py {words}".rstrip() + f"\n```\n\n{about}\n\n{table}\n"
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
