#!/bin/sh
# One large GPU, no network, under ten minutes: GPU tests, preference steps and scoring at 1.5 billion random weights in bf16 and NF4,
# FlexAttention against SDPA, and with --photos FILE a training run on photographs. Writes docs/performance_gpu.md.
#   scripts/gpu_check.sh [--photos cifar10.parquet]
#   scripts/gpu_check.sh --device cpu --model tiny --steps 1 --batch-size 1 --out page.md   # only shows that it runs
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
exec "$PYTHON" scripts/gpu_check.py "$@"
