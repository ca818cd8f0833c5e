"""A model that is asked in the middle of its training."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and afterwards each module in the mode that it had.

    Not ``train()`` on the whole: the trainer holds batch norms of frozen parts in eval mode, and that would end.
    """
    were_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.training = True
