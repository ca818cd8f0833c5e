"""Run by two processes: pictures under DDP and under FSDP2 give the losses and gradients of one process with the whole batch."""

from collections.abc import Callable

import torch
from torch import nn

from mmalign.data.pictures import encode_pictures
from mmalign.models.picture_tokens import find_picture_tokens
from tests.engine.two_processes import NUM_ROWS, compare, run_by_two
from tests.tiny_families import Built, chameleon, emu3, janus
from tests.tiny_models import random_text

SIDES: dict[Callable[[], Built], int | None] = {janus: None, emu3: 32, chameleon: None}


def main() -> None:
    for family, side in SIDES.items():
        model, processor = family()
        tokens = find_picture_tokens(model, side=side)
        codes = torch.randint(24, (NUM_ROWS, 2, tokens.size), generator=torch.Generator().manual_seed(0)).tolist()
        encoded = [encode_pictures(processor, random_text(i, 3 + i), pair, form=tokens) for i, pair in enumerate(codes)]

        def build(family: Callable[[], Built] = family) -> nn.Module:
            model = family()[0]
            for part in find_picture_tokens(model).idle():
                part.requires_grad_(False)
            return model.train()

        compare(family.__name__, build, encoded)


if __name__ == "__main__":
    run_by_two(main)
