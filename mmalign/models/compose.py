"""Compose a multimodal LLM from a vision encoder and a language model, with native transformers classes only.

CLIP and SigLIP towers give ``LlavaForConditionalGeneration``, timm towers ``FastVlmForConditionalGeneration``. What is saved
loads with ``AutoModelForImageTextToText`` and ``AutoProcessor`` and nothing else.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionModel,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionModel,
    TimmWrapperModel,
)

from mmalign.errors import UserError
from mmalign.models.chat_templates import build_chat_template
from mmalign.models.gguf import folder_of, gguf_options, is_gguf, load_gguf
from mmalign.models.identity import IDENTITY_TOLERANCE, compute_largest_difference
from mmalign.models.load import check_folder, check_safetensors, from_pretrained, load_whole, named_errors, read_config_values
from mmalign.models.processors import give_padding
from mmalign.options.models import HalvesOptions

_TOWERS: dict[str, Any] = {
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "timm_wrapper": TimmWrapperModel,
}
_NO_PLACE = "which the joint classes of transformers have no place for; expected a language model such as qwen3 or llama"
_IN_FLOAT32: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}


def compose_mllm(options: HalvesOptions) -> tuple[PreTrainedModel, LlavaProcessor]:
    """Build the model and its processor.

    Raises:
        ValueError: If a half can't be loaded, is of a kind that can't be joined, or lacks what the processor needs.
    """
    torch.manual_seed(options.seed)
    for source in (options.vision, options.llm, options.tokenizer):
        if source is not None and not gguf_options(source):
            check_folder(source)
    tower, vision_source = _load_tower(options.vision)
    llm = _load_llm(options.llm)
    tokenizer = _load_tokenizer(options)
    is_timm = tower.config.model_type == "timm_wrapper"
    try:
        joined = (_join_timm if is_timm else _join_clip)(options, tower, llm, tokenizer)
    except AttributeError as error:
        # The joint classes look for tied embeddings under the name that most language models have.
        raise UserError(f"{options.llm} is a {llm.config.model_type}, {_NO_PLACE} ({error})") from error
    if getattr(llm.get_output_embeddings(), "bias", None) is not None:
        raise UserError(f"{options.llm} is a {llm.config.model_type} whose output head has a bias, {_NO_PLACE}")
    _fill(joined, tower, llm)
    _check_same_words(options.llm, llm, joined)
    if len(tokenizer) > joined.get_input_embeddings().weight.shape[0]:
        joined.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=8)
    joined.generation_config.eos_token_id = tokenizer.eos_token_id
    joined.generation_config.pad_token_id = tokenizer.pad_token_id
    return joined, _build_processor(options, joined, tokenizer, vision_source)


def _is_config_file(source: str) -> bool:
    return source.endswith(".json") and Path(source).is_file()


def _config_from_file(source: str) -> PreTrainedConfig:
    values = read_config_values(Path(source))
    if "model_type" not in values:
        raise UserError(f"{source} has no model_type; a transformers config names one, such as clip_vision_model or qwen3")
    with named_errors(source):
        return AutoConfig.for_model(**values)


def _load_tower(source: str) -> tuple[PreTrainedModel, str | None]:
    """Return the tower, and the checkpoint its image processor can come from."""
    from_file = _is_config_file(source)
    whole = _config_from_file(source) if from_file else from_pretrained(AutoConfig, source, trust_remote_code=False)
    config = getattr(whole, "vision_config", whole)
    if config.model_type not in _TOWERS:
        raise UserError(f"{source} is a {config.model_type}; expected a vision tower of {', '.join(_TOWERS)}, or a model that has one")
    tower_class = _TOWERS[config.model_type]
    if not from_file:
        check_safetensors(source)
        if type(whole) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return load_whole(AutoModelForImageTextToText, source, **_IN_FLOAT32).model.vision_tower, source
        return load_whole(tower_class, source, **_IN_FLOAT32), source
    if config.model_type == "timm_wrapper":
        config.do_pooling = False
    return tower_class._from_config(config, dtype=torch.float32), None


def _load_llm(source: str) -> PreTrainedModel:
    if is_gguf(source):
        return load_gguf(source)
    from_file = _is_config_file(source)
    config = _config_from_file(source) if from_file else from_pretrained(AutoConfig, source, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{source} is a {config.model_type}; expected a causal language model, such as qwen3 or llama")
    if from_file:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    check_safetensors(source)
    return load_whole(AutoModelForCausalLM, source, **_IN_FLOAT32)


def _load_tokenizer(options: HalvesOptions) -> Any:
    if options.tokenizer is None and _is_config_file(options.llm):
        raise UserError(f"{options.llm} is a config without a tokenizer; name one with --tokenizer")
    source = options.tokenizer or options.llm
    load = partial(from_pretrained, AutoTokenizer, folder_of(source), trust_remote_code=False, **gguf_options(source))
    tokenizer = load()
    if getattr(tokenizer, "image_token", None) is None:
        tokenizer = load(extra_special_tokens={"image_token": "<image>"})
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {source} has no eos_token, which ends every answer")
    give_padding(tokenizer)
    return tokenizer


def _join_clip(options: HalvesOptions, tower: PreTrainedModel, llm: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    has_class_token = tower.config.model_type == "clip_vision_model"
    layer, depth = -2 if options.vision_feature_layer is None else options.vision_feature_layer, tower.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise UserError(f"vision_feature_layer is {layer}, and the tower has {depth} layers; expected {-depth - 1} to {depth}")
    joint = LlavaConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if has_class_token else "full",
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
    )
    return LlavaForConditionalGeneration(joint)


def _join_timm(options: HalvesOptions, tower: PreTrainedModel, llm: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    if options.vision_feature_layer not in (None, -1):
        raise UserError(f"vision_feature_layer is {options.vision_feature_layer}; a timm tower gives its last layer (-1) only")
    with torch.no_grad():
        features = tower.eval()(torch.zeros(1, 3, options.image_size, options.image_size)).last_hidden_state
    if features.ndim != 4:
        raise UserError(f"{tower.config.architecture} gives features of shape {tuple(features.shape)}; expected a convolutional map")
    tower.config.hidden_size = features.shape[1]
    joint = FastVlmConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=features.shape[2] * features.shape[3],
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
    )
    return FastVlmForConditionalGeneration(joint)


def _fill(joined: PreTrainedModel, tower: PreTrainedModel, llm: PreTrainedModel) -> None:
    """Copy both halves' weights; the projector stays as initialised."""
    _copy(tower, joined.model.vision_tower)
    _copy(llm.base_model, joined.model.language_model)
    _copy(llm.get_output_embeddings(), joined.get_output_embeddings())
    joined.tie_weights()


def _check_same_words(source: str, llm: PreTrainedModel, joined: PreTrainedModel) -> None:
    """Check that text alone gives the language model's logits: the joint classes leave out what some models do behind their output head."""
    difference = compute_largest_difference(llm.eval(), joined.eval())
    # Not "difference > tolerance", which a NaN would pass.
    if not difference <= IDENTITY_TOLERANCE:
        raise UserError(
            f"{source} is a {llm.config.model_type}, and {type(joined).__name__} around it gives other logits of the same text, by "
            f"{difference:.2g} of the largest one: it leaves out the scale or bound of logits, {_NO_PLACE}"
        )


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def _build_processor(options: HalvesOptions, model: PreTrainedModel, tokenizer: Any, vision_source: str | None) -> LlavaProcessor:
    vision = model.config.vision_config
    is_clip = vision.model_type == "clip_vision_model"
    if vision.model_type == "timm_wrapper":
        image_processor, patch_size = _timm_image_processor(options, model)
    else:
        image_processor, patch_size = _tower_image_processor(vision, vision_source), vision.patch_size
    template = build_chat_template(options.chat_template, image_token=tokenizer.image_token, eos_token=tokenizer.eos_token)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default" if is_clip else "full",
        num_additional_image_tokens=int(is_clip),
        chat_template=template,
    )


def _tower_image_processor(vision: Any, source: str | None) -> Any:
    """The tower's own, where it makes one picture of an image; LLaVA's class has no place for a whole model's tiles."""
    own = None if source is None else from_pretrained(AutoImageProcessor, source, trust_remote_code=False)
    side = vision.image_size
    if own is not None and own(Image.new("RGB", (2 * side, side)), return_tensors="pt")["pixel_values"].shape == (1, 3, side, side):
        return own
    colours = {} if own is None else {"image_mean": own.image_mean, "image_std": own.image_std}
    if vision.model_type == "siglip_vision_model":
        return SiglipImageProcessor(size={"height": side, "width": side}, **colours)
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **colours)


def _timm_image_processor(options: HalvesOptions, model: PreTrainedModel) -> tuple[CLIPImageProcessor, int]:
    side, tokens_per_side = options.image_size, round(model.config.image_seq_length**0.5)
    if side % tokens_per_side:
        raise UserError(
            f"image_size {side} is no multiple of the tower's {tokens_per_side} x {tokens_per_side} feature map; choose one that is"
        )
    statistics = resolve_model_data_config(model.model.vision_tower.timm_model)
    processor = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(statistics["mean"]),
        image_std=list(statistics["std"]),
    )
    return processor, side // tokens_per_side
