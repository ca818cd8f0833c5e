"""``mmalign compose``: join a vision encoder and a language model."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ComposeOptions:
    """Options of ``mmalign compose``."""

    vision: str = field(metadata={"help": "vision encoder: folder, hub id (CLIP, SigLIP, timm) or JSON config for random weights"})
    llm: str = field(metadata={"help": "language model: folder, hub id or JSON config for random weights"})
    out: Path = field(metadata={"help": "folder of the composed model"})
    tokenizer: str | None = field(default=None, metadata={"help": "tokenizer folder or hub id; the language model's own if not given"})
    chat_template: str = field(default="vicuna", metadata={"help": "vicuna, chatml, or a Jinja file"})
    vision_feature_layer: int | None = field(default=None, metadata={"help": "tower layer to project; LLaVA's -2 if not given"})
    image_size: int = field(default=256, metadata={"help": "input side of a timm tower, whose config names none"})
    seed: int = field(default=0, metadata={"help": "of what is not loaded: the projector, halves given as a config"})


def run(options: ComposeOptions) -> None:
    """Compose, save model and processor, and print what it is.

    Raises:
        ValueError: If ``out`` exists already, or the halves can't be joined.
    """
    from mmalign.models.compose import ComposeConfig, compose_mllm
    from mmalign.models.parameters import count_parameters

    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} is not empty; choose another --out")
    model, processor = compose_mllm(
        ComposeConfig(
            vision=options.vision,
            llm=options.llm,
            tokenizer=options.tokenizer,
            chat_template=options.chat_template,
            vision_feature_layer=options.vision_feature_layer,
            image_size=options.image_size,
            seed=options.seed,
        )
    )
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    print(f"{type(model).__name__} of {count_parameters(model).total:,} parameters saved in {options.out}")
