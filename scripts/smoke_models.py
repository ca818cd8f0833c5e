"""Tiny random models of real architectures with stock processors, made in memory: what smoke sizes and tests run on.

Weights are scaled up (text by 3, the rest by 2), so that a wrong mask or position moves log-probabilities by tenths and not by 1e-6.
"""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mmalign.models.chat_templates import build_chat_template
from mmalign.models.compose import compose_mllm
from mmalign.options.models import HalvesOptions

WORDS = (
    "there is a red blue green circle square star dog cat on the left right of table yes no what do you see describe".split()  # noqa: SIM905
)

CLIP_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
VOCAB = 512
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXT = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

Built = tuple[PreTrainedModel, Any]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(WORDS, k=12)) + " USER: ASSISTANT:" for _ in range(200)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=500, special_tokens=["<pad>", "<s>", "</s>", "<image>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build_tiny_llava(
    *,
    vision: dict[str, Any] | None = None,
    llm: dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
    scale: float = 3.0,
    **options: Any,
) -> Built:
    """Compose a random model. Weights are scaled up, so that a wrong mask or position moves numbers by tenths and not by 1e-6."""
    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("vision", vision or CLIP_TOWER), ("llm", llm or QWEN3)):
            Path(folder, f"{name}.json").write_text(json.dumps(values))
        (tokenizer or build_tokenizer()).save_pretrained(Path(folder, "tokenizer"))
        config = HalvesOptions(
            vision=f"{folder}/vision.json", llm=f"{folder}/llm.json", tokenizer=f"{folder}/tokenizer", seed=seed, **options
        )
        model, processor = compose_mllm(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "vision_tower" not in name:
                parameter.mul_(scale)
    return model.eval(), processor


def tokenizer_with(**tokens: str) -> PreTrainedTokenizerFast:
    """The usual tokenizer with more special tokens, which processors find by name."""
    tokenizer = build_tokenizer()
    new = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>", **tokens},
    )
    new.add_special_tokens({"additional_special_tokens": list(tokens.values())})
    assert len(new) <= VOCAB
    return new


def template(placeholder: str) -> str:
    """The chat template with a family's own image placeholder."""
    return build_chat_template("vicuna", image_token=placeholder, eos_token="</s>")


def scaled(model: PreTrainedModel) -> PreTrainedModel:
    """Scale random weights up, and fill what is initialised to zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.2)
            elif parameter.ndim > 1:
                parameter.mul_(3.0 if "language_model" in name or "text" in name else 2.0)
    return model.eval()


QWEN_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_TOKENS |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}


def build_qwen_processor(processor_class: Any, image_options: dict[str, Any], video: Any) -> tuple[Any, dict[str, int]]:
    tokenizer = tokenizer_with(**QWEN_TOKENS)
    images = hf.Qwen2VLImageProcessor(min_pixels=8 * 8 * 4, max_pixels=8 * 8 * 36, **image_options)
    processor = processor_class(images, tokenizer, video, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"))
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return processor, {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def qwen2_5_vl() -> Built:
    """Qwen2.5-VL: window attention in the tower, positions on three axes."""
    processor, ids = build_qwen_processor(hf.Qwen2_5_VLProcessor, {"patch_size": 4, "merge_size": 2}, hf.Qwen2VLVideoProcessor())
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64, "window_size": 16,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {**TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    torch.manual_seed(0)
    return scaled(hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids))), processor


def build_qwen3_vl(model_class: Any, config_class: Any, text: dict[str, Any]) -> Built:
    processor, ids = build_qwen_processor(hf.Qwen3VLProcessor, {"patch_size": 4, "merge_size": 2}, hf.Qwen3VLVideoProcessor())
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64,
        "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
    }  # fmt: skip
    text = {
        **TEXT,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True},
        **text,
    }
    torch.manual_seed(0)
    return scaled(model_class(config_class(vision_config=vision, text_config=text, **ids))), processor


def qwen3_vl() -> Built:
    """Qwen3-VL: image features enter several layers."""
    return build_qwen3_vl(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, {})


def smolvlm() -> Built:
    """SmolVLM2: Idefics3's design with its own classes and a video processor."""
    tokenizer = tokenizer_with(
        fake_image_token="<fake_token_around_image>", end_of_utterance_token="<end_of_utterance>", global_image_token="<global-img>"
    )
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    videos = hf.SmolVLMVideoProcessor()
    processor = hf.SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, chat_template=template("<image>"))
    config = hf.SmolVLMConfig(
        vision_config={**TOWER, "image_size": 28, "patch_size": 7}, text_config={**TEXT, "model_type": "llama"}, scale_factor=2,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.SmolVLMForConditionalGeneration(config)
    model.resize_token_embeddings(max(VOCAB, len(processor.tokenizer)))
    return scaled(model), processor
