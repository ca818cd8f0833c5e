"""A model's own dropout, in every form that transformers has it."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration

from mmalign.models.dropout import switch_dropout_off

LAYERS = (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
SIZES = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in LAYERS}
SHARES = {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}


def test_a_model_trains_as_it_is_evaluated() -> None:
    """BART's layers, which Florence-2's text is made of, drop attention, activations, outputs and whole layers; an adapter's stays."""
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(vocab_size=50, d_model=16, max_position_embeddings=32, **SIZES, **SHARES)).eval()
    model = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj"]))
    ids = torch.arange(4, 14)[None]
    expected = model.eval()(input_ids=ids).logits
    assert not torch.allclose(model.train()(input_ids=ids).logits, expected, atol=1e-3)
    switch_dropout_off(model)
    for _ in range(4):
        torch.testing.assert_close(model.train()(input_ids=ids).logits, expected)
    kept = [module.p for name, module in model.named_modules() if name.endswith("lora_dropout.default")]
    assert kept == [0.2] * 6
