"""``mmalign merge``: a LoRA adapter and its base model to one checkpoint that plain transformers loads."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.models.precision import Dtype, Quantization


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of ``mmalign merge``."""

    adapter: str = field(metadata={"help": "folder of the adapter, as mmalign train --lora-rank leaves it", "positional": True})
    out: Path = field(metadata={"help": "folder of the merged model"})
    dtype: Dtype = field(default="auto", metadata={"help": "precision of the merged weights"})
    quantization: Quantization | None = field(
        default=None, metadata={"help": "how the base was held in training; what the adapter's run says if not given"}
    )


def run(options: MergeOptions) -> None:
    """Load, merge, save weights and processor.

    An adapter trained on 4-bit weights fits those and no others, so it is merged into what the 4 bits stand for.

    Raises:
        ValueError: If ``out`` is not empty, or there is no adapter.
    """
    from mmalign.commands.run_record import RUN_FILE, read_record
    from mmalign.models.adapters import load_merged

    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} is not empty; choose another --out")
    folder = Path(options.adapter)
    quantization = options.quantization
    if quantization is None:
        recorded = read_record(folder)["options"] if (folder / RUN_FILE).is_file() else {}
        quantization = recorded.get("quantization", "none")
    model, processor = load_merged(options.adapter, dtype=options.dtype, quantization=quantization)
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    base = model.name_or_path
    print(f"{options.adapter} merged into {base}{'' if quantization == 'none' else f' in {quantization}'}, saved in {options.out}")
