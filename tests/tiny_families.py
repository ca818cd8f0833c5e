"""Tiny random models of the supported families, each with a stock processor made in memory.

Weights are scaled up (text by 3, the rest by 2), so that a wrong mask or position moves log-probabilities by tenths and not by 1e-6.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from tokenizers import processors

from scripts.smoke_models import (
    TEXT,
    TOWER,
    VOCAB,
    Built,
    build_qwen3_vl,
    build_qwen_processor,
    build_tiny_llava,
    qwen2_5_vl,
    qwen3_vl,
    scaled,
    smolvlm,
    template,
    tokenizer_with,
)

# The sizes and tokens of the models that recipes share, by the names that tests know them by.
from scripts.smoke_models import QWEN_TOKENS as QWEN_TOKENS  # isort: skip
from scripts.smoke_models import SIZES as SIZES  # isort: skip

CLIP = {**TOWER, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "projection_dim": 32}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}


def llava() -> Built:
    """LLaVA-1.5: CLIP tower, Qwen3."""
    return build_tiny_llava()


def llava_next() -> Built:
    """LLaVA-NeXT: tiles of one image."""
    tokenizer = tokenizer_with()
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]
    )
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=template("<image>"),
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    config = hf.LlavaNextConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]], vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.LlavaNextForConditionalGeneration(config)), processor


def llava_onevision() -> Built:
    """LLaVA-OneVision: SigLIP tower, any-resolution tiles, Qwen2."""
    tokenizer = tokenizer_with(video_token="<video>")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    images = hf.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints)
    processor = hf.LlavaOnevisionProcessor(
        images, tokenizer, video_processor=hf.LlavaOnevisionVideoProcessor(), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=template("<image>"), image_token="<image>", video_token="<video>",
    )  # fmt: skip
    config = hf.LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config={**TEXT, "model_type": "qwen2"}, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"), image_grid_pinpoints=pinpoints, vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.LlavaOnevisionForConditionalGeneration(config)), processor


def fastvlm() -> Built:
    """FastVLM: a convolutional timm tower with batch norms."""
    tower = {
        "model_type": "timm_wrapper", "architecture": "fastvit_mci0", "hidden_size": 64,
        "model_args": {"inference_mode": True, "layers": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]},
    }  # fmt: skip
    tokenizer = tokenizer_with()
    images = hf.CLIPImageProcessor(size={"height": 128, "width": 128}, do_center_crop=False)
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=32, vision_feature_select_strategy="full", chat_template=template("<image>"), image_token="<image>"
    )
    config = hf.FastVlmConfig(
        vision_config=tower, text_config={**TEXT, "model_type": "qwen2"}, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    torch.manual_seed(0)
    model = scaled(hf.FastVlmForConditionalGeneration(config))
    with torch.no_grad():
        # Random initialisation gives the same features for every image.
        for module in model.model.vision_tower.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model, processor


def qwen2_vl() -> Built:
    """Qwen2-VL: native resolution, positions on three axes."""
    processor, ids = build_qwen_processor(hf.Qwen2VLProcessor, {"patch_size": 4, "merge_size": 2}, hf.Qwen2VLVideoProcessor())
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    text = {**TEXT, "model_type": "qwen2_vl_text", "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    torch.manual_seed(0)
    return scaled(hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(vision_config=vision, text_config=text, **ids))), processor


def qwen3_vl_moe() -> Built:
    """Qwen3-VL with experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    return build_qwen3_vl(hf.Qwen3VLMoeForConditionalGeneration, hf.Qwen3VLMoeConfig, experts)


def qwen3_5() -> Built:
    """Qwen3.5: three linear-attention layers to one of full attention. Shared rows are not exact for it."""
    processor, ids = build_qwen_processor(hf.Qwen3VLProcessor, {"patch_size": 4, "merge_size": 2}, hf.Qwen3VLVideoProcessor())
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64,
        "num_position_embeddings": 64,
    }  # fmt: skip
    text = {
        **TEXT, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5, "mrope_interleaved": True},
    }  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.Qwen3_5ForConditionalGeneration(hf.Qwen3_5Config(vision_config=vision, text_config=text, **ids))), processor


def idefics3() -> Built:
    """Idefics3, the architecture of SmolVLM: images cut into tiles, tokens merged by pixel shuffle."""
    tokenizer = tokenizer_with(
        fake_image_token="<fake_token_around_image>", end_of_utterance_token="<end_of_utterance>", global_image_token="<global-img>"
    )
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = hf.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template("<image>"))
    vision = {**TOWER, "image_size": 28, "patch_size": 7}
    config = hf.Idefics3Config(
        vision_config=vision, text_config={**TEXT, "model_type": "llama"}, scale_factor=2,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.Idefics3ForConditionalGeneration(config)
    model.resize_token_embeddings(max(VOCAB, len(processor.tokenizer)))
    return scaled(model), processor


def internvl() -> Built:
    """InternVL: tiles and a thumbnail, Qwen3."""
    tokenizer = tokenizer_with(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    images = hf.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=2)
    processor = hf.InternVLProcessor(
        images, tokenizer, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=template("<IMG_CONTEXT>")
    )
    vision = {**TOWER, "image_size": [28, 28], "patch_size": [7, 7]}
    config = hf.InternVLConfig(
        vision_config=vision, text_config={**TEXT, "model_type": "qwen3", "head_dim": 16}, downsample_ratio=0.5,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.InternVLForConditionalGeneration(config)), processor


def gemma3() -> Built:
    """Gemma-3: sliding windows, image tokens that see each other."""
    tokenizer = tokenizer_with(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    images = hf.Gemma3ImageProcessor(size={"height": 28, "width": 28})
    processor = hf.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template("<start_of_image>"))
    text = {
        **TEXT, "head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16
    }  # fmt: skip
    ids = {"image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"}
    config = hf.Gemma3Config(
        text_config=text, vision_config={**TOWER, "image_size": 28, "patch_size": 7}, mm_tokens_per_image=4,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.Gemma3ForConditionalGeneration(config)), processor


def gemma4() -> Built:
    """Gemma-4: inputs of their own for every layer, layers that share keys and values, bounded logits, no audio tower."""
    tokens = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    tokens |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokenizer = tokenizer_with(**tokens)
    images = hf.Gemma4ImageProcessor(patch_size=2, pooling_kernel_size=2, max_soft_tokens=70)
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(), images, tokenizer, hf.Gemma4VideoProcessor(), chat_template=template("<|image|>"),
        image_seq_length=70,
    )  # fmt: skip
    vision = {
        **TOWER, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 2, "pooling_kernel_size": 2,
        "position_embedding_size": 128,
    }  # fmt: skip
    text = {
        **TEXT, "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 8,
        "num_kv_shared_layers": 1, "head_dim": 16, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB, "use_bidirectional_attention": "vision", "final_logit_softcapping": 4.0,
    }  # fmt: skip
    ids = {f"{key}_id": tokenizer.convert_tokens_to_ids(token) for key, token in tokens.items()}
    ids |= {"eoa_token_index": ids.pop("eoa_token_id"), "video_token_id": processor.video_token_id}
    torch.manual_seed(0)
    return scaled(hf.Gemma4ForConditionalGeneration(hf.Gemma4Config(text_config=text, vision_config=vision, **ids))), processor


def paligemma() -> Built:
    """PaliGemma: the whole prefix sees itself."""
    return _paligemma({"model_type": "gemma"})


def paligemma2() -> Built:
    """PaliGemma-2: Gemma-2, whose attention and logits are bounded, with sliding windows; it attends eagerly."""
    windows = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}
    return _paligemma({"model_type": "gemma2", **windows, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0})


def _paligemma(text: dict[str, Any]) -> Built:
    tokenizer = tokenizer_with()
    images = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, tokenizer, chat_template=template("<image>"))
    config = hf.PaliGemmaConfig(
        vision_config={**SIGLIP}, text_config={**TEXT, **text, "head_dim": 16}, projection_dim=64,
        image_token_index=processor.image_token_id, vocab_size=VOCAB,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.PaliGemmaForConditionalGeneration(config)
    model.resize_token_embeddings(max(VOCAB, len(processor.tokenizer)))
    return scaled(model), processor


def pixtral() -> Built:
    """Pixtral tower of native resolution in LLaVA, Mistral."""
    tokenizer = tokenizer_with(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    images = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14)
    processor = hf.PixtralProcessor(images, tokenizer, patch_size=14, chat_template=template("[IMG]"))
    vision = {
        **TOWER, "model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 16,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=vision, text_config={**TEXT, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.LlavaForConditionalGeneration(config)), processor


def mistral3() -> Built:
    """Mistral-3: Pixtral tower, merged patches."""
    tokenizer = tokenizer_with(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    images = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14)
    processor = hf.PixtralProcessor(images, tokenizer, patch_size=14, spatial_merge_size=2, chat_template=template("[IMG]"))
    vision = {
        **TOWER, "model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 16,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }  # fmt: skip
    config = hf.Mistral3Config(
        vision_config=vision, text_config={**TEXT, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.Mistral3ForConditionalGeneration(config)), processor


def molmo2() -> Built:
    """Molmo-2: overlapping crops pooled by attention and added to the placeholders' embeddings, which lie behind the head's vocabulary."""
    names = ("im_patch", "im_col", "im_start", "low_res_im_start", "frame_start", "im_end", "frame_end", "im_low")
    tokenizer = tokenizer_with(**{name: f"<{name}>" for name in names}, image_token="<|image|>", video_token="<|video|>")
    patches = {"patch_size": 4, "pooling_size": [2, 2]}
    images = hf.Molmo2ImageProcessor(size={"height": 16, "width": 16}, max_crops=2, overlap_margins=[1, 1], **patches)
    processor = hf.Molmo2Processor(images, hf.Molmo2VideoProcessor(), tokenizer, chat_template=template("<|image|>"))
    tower = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    vision = {**tower, "intermediate_size": 64, "num_hidden_layers": 2, "image_size": [16, 16], "patch_size": 4}
    adapter = {**tower, "intermediate_size": 96, "text_hidden_size": 64, "vision_feature_layer": [1, 0]}
    added = len(names) + 2
    text = {**TEXT, "head_dim": 16, "vocab_size": len(tokenizer) - added, "additional_vocab_size": added}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    config = hf.Molmo2Config(
        vision_config=vision, adapter_config=adapter, text_config=text, image_patch_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        image_start_token_id=tokenizer.convert_tokens_to_ids("<im_start>"), image_end_token_id=tokenizer.convert_tokens_to_ids("<im_end>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = scaled(hf.Molmo2ForConditionalGeneration(config))
    with torch.no_grad():
        # Small weights, multiplied several times, leave nothing of the image.
        for parameter in [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]:
            if parameter.ndim > 1:
                parameter.mul_(5.0)
    return model, processor


def glm4v() -> Built:
    """GLM-4.1V: native resolution, positions on three axes, a norm on either side of each sublayer."""
    tokens = {"video_token": "<|video|>", "image_start_token": "<|begin_of_image|>", "image_end_token": "<|end_of_image|>"}
    tokens |= {"video_start_token": "<|begin_of_video|>", "video_end_token": "<|end_of_video|>", "image_token": "<|image|>"}
    tokenizer = tokenizer_with(**tokens)
    images = hf.Glm4vImageProcessor(size={"shortest_edge": 8 * 8 * 8, "longest_edge": 8 * 8 * 72}, patch_size=4)
    placeholder = "<|begin_of_image|><|image|><|end_of_image|>"
    processor = hf.Glm4vProcessor(images, tokenizer, hf.Glm4vVideoProcessor(), chat_template=template(placeholder))
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64, "image_size": 28,
    }  # fmt: skip
    text = {
        **TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0},
    }  # fmt: skip
    ids = {f"{key}_id": tokenizer.convert_tokens_to_ids(token) for key, token in tokens.items()}
    torch.manual_seed(0)
    return scaled(hf.Glm4vForConditionalGeneration(hf.Glm4vConfig(vision_config=vision, text_config=text, **ids))), processor


def lfm2_vl() -> Built:
    """LFM2-VL: short convolutions beside attention, a tower of native resolution. Shared rows are not exact for it."""
    tokens = {"image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>", "image_thumbnail_token": "<|img_thumbnail|>"}
    tokenizer = tokenizer_with(**tokens, **{f"tile_{i}{j}": f"<|img_row_{i}_col_{j}|>" for i in (1, 2) for j in (1, 2)})
    images = hf.Lfm2VlImageProcessor(
        encoder_patch_size=7, tile_size=28, min_image_tokens=2, max_image_tokens=24, min_tiles=2, max_tiles=2, max_pixels_tolerance=0.3
    )
    processor = hf.Lfm2VlProcessor(images, tokenizer, chat_template=template("<image>"))
    vision = {**TOWER, "model_type": "siglip2_vision_model", "patch_size": 7, "num_patches": 16}
    text = {**TEXT, "model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    config = hf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), projector_hidden_size=64
    )
    torch.manual_seed(0)
    return scaled(hf.Lfm2VlForConditionalGeneration(config)), processor


def ovis2() -> Built:
    """Ovis-2: an image's patches are mixtures of a table's embeddings, with marks between tiles."""
    names = ("IMG_START", "IMG_GRID", "IMG_COL", "IMG_ROW", "IMG_END")
    tokenizer = tokenizer_with(img_atom="<IMG_ATOM>", **{name.lower(): f"<{name}>" for name in names})
    images = hf.Ovis2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=2)
    processor = hf.Ovis2Processor(images, tokenizer, chat_template=template("<image>"), image_seq_length=4)
    config = hf.Ovis2Config(
        vision_config={**TOWER, "image_size": 28, "patch_size": 7, "hidden_stride": 2, "vocab_size": 40},
        text_config={**TEXT, "model_type": "qwen2"}, vocab_size=VOCAB, hidden_size=64,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=[tokenizer.convert_tokens_to_ids(f"<{name}>") for name in names],
    )  # fmt: skip
    torch.manual_seed(0)
    return scaled(hf.Ovis2ForConditionalGeneration(config)), processor


def janus() -> Built:
    """Janus: a SigLIP tower to see with, and 16 tokens of a picture vocabulary of 24 to draw with."""
    tokens = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tokenizer_with(**tokens)
    images = hf.JanusImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = hf.JanusProcessor(images, tokenizer, chat_template=template("<image>"), num_image_tokens=16, use_default_system_prompt=True)
    vision = {
        **TOWER, "image_size": 16, "patch_size": 4, "num_image_tokens": 16, "mlp_ratio": 2.0, "projection_dim": SIZES["hidden_size"],
    }  # fmt: skip
    pictures = {
        "embed_dim": 8, "num_embeddings": 24, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1, "projection_dim": SIZES["hidden_size"], "image_token_embed_dim": SIZES["hidden_size"],
    }  # fmt: skip
    config = hf.JanusConfig(
        text_config={**TEXT, "model_type": "llama"}, vision_config=vision, vq_config=pictures, tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = scaled(hf.JanusForConditionalGeneration(config))
    begin = tokenizer.convert_tokens_to_ids(tokens["boi_token"])
    model.generation_config.update(bos_token_id=1, pad_token_id=0, eos_token_id=2)
    # Stock image generation reads it; transformers saves it and does not load it again.
    model.generation_config.generation_kwargs = {"boi_token_id": begin}
    return model, processor


def emu3() -> Built:
    """Emu3: sees and draws by 24 words of its own vocabulary, each 8 pixels high and wide."""
    tokens = {
        "boi_token": "<|image start|>", "eoi_token": "<|image end|>", "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>", "eol_token": "<|extra_200|>",
    }  # fmt: skip
    tokenizer = tokenizer_with(**tokens)
    tokenizer.add_tokens([f"<|visual token {number:06d}|>" for number in range(24)], special_tokens=True)
    images = hf.Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=64 * 64)
    processor = hf.Emu3Processor(images, tokenizer, chat_template=template("<image>"))
    pictures = {
        "codebook_size": 24, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [],
        "hidden_size": 32,
    }  # fmt: skip
    text = {**TEXT, "attention_dropout": 0.0}
    config = hf.Emu3Config(text_config=text, vq_config=pictures, vocabulary_map=tokenizer.get_vocab(), tie_word_embeddings=False)
    torch.manual_seed(0)
    model = scaled(hf.Emu3ForConditionalGeneration(config))
    model.generation_config.update(bos_token_id=1, pad_token_id=0, eos_token_id=2)
    return model, processor


def chameleon() -> Built:
    """Chameleon: sees and draws by 24 words of its own vocabulary, 16 of them a picture."""
    tokens = {"boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokenizer = tokenizer_with(**tokens)
    tokenizer.add_special_tokens({"sep_token": "<reserved08706>"})
    # A code's digits as letters, as checkpoints name them; in another order than the codes, as in checkpoints.
    names = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z" for code in range(24)]
    tokenizer.add_tokens(sorted(names), special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    images = hf.ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.ChameleonProcessor(images, tokenizer, image_seq_length=16)
    pictures = {
        "embed_dim": 8, "num_embeddings": 24, "latent_channels": 32, "resolution": 32, "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1,
    }  # fmt: skip
    config = hf.ChameleonConfig(**TEXT, vq_config=pictures, vocabulary_map=tokenizer.get_vocab())
    torch.manual_seed(0)
    return scaled(hf.ChameleonForConditionalGeneration(config)), processor


FAMILIES: dict[str, Callable[[], Built]] = {
    "llava": llava,
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "fastvlm": fastvlm,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "qwen3-vl-moe": qwen3_vl_moe,
    "qwen3.5": qwen3_5,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "pixtral": pixtral,
    "mistral3": mistral3,
    "molmo2": molmo2,
    "glm4v": glm4v,
    "ovis2": ovis2,
    "lfm2-vl": lfm2_vl,
    "janus": janus,
}
"""By the name that the support table gives them."""

PLAIN_ROWS = {"qwen3.5", "lfm2-vl"}
"""Families whose responses can't share a row: part of their layers keep a state, not a list of tokens."""

PLAIN_PROMPTS = {*PLAIN_ROWS, "paligemma", "paligemma2"}
"""Families whose questions can't share their image's cache: those, and PaliGemma's, whose prompt attends to its own end."""
