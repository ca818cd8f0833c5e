"""Dropout of a model's own, which makes log-probabilities differ from a reference's where the weights do not."""

from torch import nn

# Layers of transformers hold a share and no module, under one of these names; the last two drop whole layers and branches.
_SHARES = ("attention_dropout", "activation_dropout", "dropout", "layerdrop", "drop_prob")


def switch_dropout_off(model: nn.Module) -> None:
    """Let a model train without the dropout of its configuration; that of an adapter (``--lora-dropout``) stays."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        for share in _SHARES:
            if isinstance(getattr(module, share, None), float):
                setattr(module, share, 0.0)
