"""What the server of processes imports before it forks: all that the commands will."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from mmalign.difficulty import scoring

torch.set_num_threads(1)
# Eight pairs per shard: five shards of the forty pairs, to be killed in and between.
scoring.SHARD_SIZE = 8
