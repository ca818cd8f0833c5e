"""Run by two processes: one command of mmalign, and then whether its process group is left."""

import sys

import torch
import torch.distributed as dist

from mmalign.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    code = main(sys.argv[1:])
    assert not dist.is_initialized()
    print(f"left the group with {code}", flush=True)
    sys.exit(code)
