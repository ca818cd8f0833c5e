"""Dropout of a model's own, which makes log-probabilities differ from a reference's where the weights do not."""

from torch import nn


def switch_dropout_off(model: nn.Module) -> None:
    """Let a model train without the dropout of its configuration; that of an adapter (``--lora-dropout``) stays."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        # Attention of transformers holds a share and no module, under one of two names.
        for share in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, share, None), float):
                setattr(module, share, 0.0)
