"""Make rejected responses by weakening the image (BPO's image weakening, arXiv:2403.08730), with the model that is to be aligned.

    python data_tools/weaken_images.py sft/train.parquet --model llava-hf/llava-1.5-7b-hf --out weakened

The image is diffused with noise, and the response decoded from (1 + contrast) x logits given the noised image - contrast x logits given the
image: what the model expects more the less it sees. Rows have messages (the last answer is the chosen one) or prompt and chosen. Work is
done in chunks: give the same command again after a stop, and the result has the same bytes as if there had been none.

Cost: twice the batch of plain generation, as both images are decoded side by side.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.negative_options import NegativeOptions
from data_tools.program import run_program
from mmalign.errors import UserError
from mmalign.options.precision import Dtype


@dataclass(frozen=True, kw_only=True)
class WeakenOptions(NegativeOptions):
    """Options of ``weaken_images.py``."""

    model: str
    """multimodal LLM: folder or hub id"""
    step: int = 900
    """step of the noise schedule, 0 (the image) to 999 (noise)"""
    contrast: float = 1.0
    """how strongly the noised image's logits are amplified"""
    plausibility: float = 0.2
    """rule out tokens below this share of the likeliest one's probability"""
    temperature: float = 0.2
    """sampling temperature; 0 is greedy"""
    max_new_tokens: int = 256
    """longest response in tokens"""
    batch_size: int = 16
    """rows at once; another size may change a few responses by rounding, and is another run"""
    seed: int = 0
    """of noise and sampling"""
    dtype: Dtype = "auto"
    """precision of the weights"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "max_new_tokens", "batch_size")


def run(options: WeakenOptions) -> None:
    """Decode a hallucinated response to each row's prompt.

    Raises:
        ValueError: If an option is out of range.
    """
    from data_tools.chunks import chunk_seed
    from data_tools.models import load_on_accelerator
    from data_tools.negatives import Answers, build_negatives
    from data_tools.weakening import NUM_STEPS, Weakener
    from mmalign.models.fingerprint import fingerprint_checkpoint

    if not 0 <= options.step < NUM_STEPS:
        raise UserError(f"step is {options.step}; expected 0 to {NUM_STEPS - 1}")
    if not 0 < options.plausibility <= 1 or options.contrast < 0 or options.temperature < 0:
        raise UserError(
            f"plausibility is {options.plausibility}, contrast {options.contrast}, temperature {options.temperature}; "
            "expected a share in (0, 1] and two numbers of at least 0"
        )
    decoding = {name: getattr(options, name) for name in ("step", "contrast", "plausibility", "temperature", "max_new_tokens")}
    weakener = Weakener(*load_on_accelerator(options.model, dtype=options.dtype), **decoding)

    def rejected(rows: Sequence[Any], start: int) -> Answers:
        read = [_read(weakener, row) for row in rows]
        good = {place: found for place, found in enumerate(read) if not isinstance(found, ValueError)}
        seeds = [chunk_seed(options.seed, start + place) for place in good]
        texts = iter(weakener(list(good.values()), seeds=seeds) if good else [])
        return [found if isinstance(found, ValueError) else _response(next(texts)) for found in read]

    weights = fingerprint_checkpoint(options.model, dtype=options.dtype)
    settings = {"builder": "image-weakening", "model": options.model, "model_weights": weights, **decoding}
    # Each row has a seed of its own: work of the form that had one per chunk is not continued.
    settings |= {"seed": options.seed, "seeds": "row"}
    build_negatives(options, rejected, settings=settings, size=options.batch_size, source="image-weakening")


def _read(weakener: Any, row: Any) -> Any:
    """The row's prompt, or why it can't be answered."""
    if not row.images:
        return ValueError("the row has no image to weaken")
    try:
        return weakener.read(row.messages[:-1], row.images)
    except UserError as error:
        return error


def _response(text: str) -> str | ValueError:
    return text or ValueError("the model's response is empty")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, WeakenOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
