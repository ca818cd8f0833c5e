"""Dropout of a model's own, which makes log-probabilities differ from a reference's where the weights do not."""

from torch import nn


def switch_dropout_off(model: nn.Module) -> None:
    """Let a model train without the dropout of its configuration; that of an adapter (``--lora-dropout``) stays."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        if getattr(module, "attention_dropout", 0.0):
            module.attention_dropout = 0.0
