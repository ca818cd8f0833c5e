"""Zero-shot teachers from open_clip: models such as DFN ViT-H/14 and EVA, whose weights transformers can't read.

Shape legend: B = images, C = classes, D = feature width, S = side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from mmalign.classifier.dual_head import Preprocessing
from mmalign.classifier.prompts import average_prompts
from mmalign.classifier.teachers import TeacherOutput
from mmalign.errors import UserError
from mmalign.models.load import check_folder, resolve_dtype


class OpenClipTeacher:
    """An open_clip model with the class names as text: t = scale * cos(image, class); the bias of SigLIP's is left out."""

    def __init__(self, source: str, *, classes: Sequence[str], prompts: Sequence[str], device: torch.device) -> None:
        """Load the model and embed the classes once.

        Args:
            source: ARCHITECTURE/TAG of open_clip's list, such as ViT-H-14-378-quickgelu/dfn5b; hf-hub:OWNER/NAME; or a folder with
                open_clip_config.json and weights. Older ones are pickles; they are read as plain tensors, and no code of theirs runs.
            classes: Names, in the order of the logits.
            prompts: Texts with {}, the place of the class name.
            device: Where the model runs.

        Raises:
            ValueError: If open_clip is not installed, or there are no such weights.
        """
        self.model, tokenizer, self.dtype = _load(source, device)
        visual = self.model.visual
        size = visual.image_size
        self.side = int(size if isinstance(size, int) else size[0])
        settings = visual.preprocess_cfg
        self.preprocessing = Preprocessing(
            image_size=self.side, resize_size=self.side, mean=tuple(settings["mean"]), std=tuple(settings["std"])
        )

        @torch.no_grad()
        def encode(texts: list[str]) -> Tensor:
            return self.model.encode_text(tokenizer(texts).to(device)).float()

        self.text_features = average_prompts(encode, classes=classes, prompts=prompts)

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """Classify (B, 3, S, S)."""
        features = F.normalize(self.model.encode_image(self.preprocessing.normalize(views).to(self.dtype)).float(), dim=-1)
        return TeacherOutput(self.model.logit_scale.exp().float() * features @ self.text_features.t(), features)


def _load(source: str, device: torch.device) -> tuple[Any, Any, torch.dtype]:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("an open-clip teacher needs open_clip: pip install 'mmalign[open-clip]'") from error
    check_folder(source.removeprefix("local-dir:"))
    name, tag = f"local-dir:{source}" if Path(source).is_dir() else source, None
    if not name.startswith(("local-dir:", "hf-hub:")):
        name, _, tag = source.rpartition("/")
        if not name:
            raise UserError(f"open-clip teacher is {source!r}; expected ARCHITECTURE/TAG, such as ViT-B-32/openai, hf-hub:ID or a folder")
    dtype = resolve_dtype("auto")
    precision = "bf16" if dtype is torch.bfloat16 else "fp32"
    try:
        model = open_clip.create_model(name, pretrained=tag, precision=precision, device=device, require_pretrained=True, weights_only=True)
        tokenizer = open_clip.get_tokenizer(name)
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        # Without a hub, unknown tags, weights that don't fit: open_clip raises each of these.
        raise UserError(f"open-clip teacher {source} can't be loaded: {error}") from error
    return model.requires_grad_(False).eval(), tokenizer, dtype
