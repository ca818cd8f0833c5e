"""SigLIP and long-text CLIP as the contrastive model, saved and loaded as users have them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

from mmalign.classifier.prompts import embed_classes
from mmalign.data.rows import PairRow, read_pair
from mmalign.difficulty.contrastive import score_contrastive, split_text
from mmalign.models.contrastive import build_clip
from mmalign.models.load import load_clip
from mmalign.models.text_towers import text_limit
from tests.tiny_models import build_tokenizer, pair_rows

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CHOSEN, REJECTED = "a red dog. a blue cat on the left of the table.", "a cat"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("siglip")
    text = {**TOWER, "vocab_size": 512, "max_position_embeddings": 16, "projection_size": 32}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": 28, "patch_size": 14}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer().backend_tokenizer, pad_token="<pad>", eos_token="</s>")
    SiglipProcessor(SiglipImageProcessor(size={"height": 28, "width": 28}), tokenizer).save_pretrained(folder)
    return load_clip(str(folder), dtype="float32")


def rows() -> list[PairRow]:
    return [read_pair({**raw, "chosen": CHOSEN, "rejected": REJECTED}, index=0) for raw in pair_rows(2)]


def test_siglip_texts_are_padded_to_the_limit_without_a_mask(siglip: Any) -> None:
    model, processor = siglip
    assert text_limit(model.config) == 16

    def cosine(row: PairRow, text: str, padding: str) -> float:
        inputs = processor(text=[text], images=row.images, padding=padding, max_length=16, return_tensors="pt")
        with torch.no_grad():
            out = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        return torch.cosine_similarity(out.image_embeds, out.text_embeds).item()

    def gap(row: PairRow, padding: str) -> float:
        first, second = CHOSEN.split(". ")
        return (cosine(row, f"{first}.", padding) + cosine(row, second, padding)) / 2 - cosine(row, REJECTED, padding)

    for (got, _), row in zip(score_contrastive(model, processor, rows()), rows(), strict=True):
        assert got == pytest.approx(gap(row, "max_length"), abs=1e-5)
        # The test would see the mistake: unpadded texts give another number.
        assert abs(got - gap(row, "longest")) > 1e-3


def test_names_of_classes_are_read_as_texts_are(siglip: Any) -> None:
    model, processor = siglip
    encoded = processor.tokenizer(["a red dog {x}"], padding="max_length", max_length=16, return_tensors="pt")
    assert "attention_mask" in encoded
    with torch.no_grad():
        expected, masked = (
            torch.nn.functional.normalize(model.get_text_features(**kept).pooler_output)
            for kept in ({"input_ids": encoded["input_ids"]}, dict(encoded))
        )
    got = embed_classes(model, processor, classes=["red_dog"], prompts=["a {} {x}"])
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, masked, atol=1e-3)


def test_long_text_clip_is_held_to_its_configs_limit(tmp_path: Path) -> None:
    from mmalign.worlds.tokenizer import train_tokenizer

    train_tokenizer(["a red dog. a blue cat."] * 3).save_pretrained(tmp_path)
    config = {"text_config": {**TOWER, "max_position_embeddings": 248}, "vision_config": {**TOWER, "image_size": 28, "patch_size": 14}}
    model, processor = build_clip(config, tokenizer=str(tmp_path), seed=0)
    # Long-CLIP checkpoints keep the tokenizer of CLIP, which says 77.
    processor.tokenizer.model_max_length = 77
    assert text_limit(model.config) == 248
    long = "a red dog and a blue cat and " * 20 + "a dog"
    assert 77 < len(processor.tokenizer(long)["input_ids"]) <= 248
    assert split_text(long, processor.tokenizer, text_limit(model.config)).texts == [" ".join(long.split())]
    row = read_pair({**pair_rows(1)[0], "chosen": long, "rejected": "a cat"}, index=0)
    inputs = processor(text=[long, "a cat"], images=row.images, padding=True, return_tensors="pt", max_length=248, truncation=True)
    with torch.no_grad():
        out = model(**inputs)
    cosines = torch.cosine_similarity(out.image_embeds, out.text_embeds)
    ((gap, num_cut),) = score_contrastive(model, processor, [row])
    assert gap == pytest.approx((cosines[0] - cosines[1]).item(), abs=1e-5)
    assert num_cut == 0


def test_a_model_without_a_text_limit_is_named() -> None:
    config = CLIPConfig()
    del config.text_config
    with pytest.raises(ValueError, match="the config of clip has no text_config.max_position_embeddings"):
        text_limit(config)
