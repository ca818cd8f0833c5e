"""``mmalign merge``: a LoRA adapter and its base model to one checkpoint that plain transformers loads."""

from mmalign.errors import UserError
from mmalign.files import open_to_readers, writing
from mmalign.models.adapters import load_merged
from mmalign.models.quantize import recorded_quantization
from mmalign.options.models import MergeOptions
from mmalign.runs.cards import write_derived_card


def run(options: MergeOptions) -> None:
    """Load, merge, save weights, processor and card.

    An adapter trained on 4-bit weights fits those and no others, so it is merged into what the 4 bits stand for.

    Raises:
        ValueError: If ``out`` is not empty, or there is no adapter.
    """
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty; choose another --out")
    quantization = options.quantization or recorded_quantization(options.adapter)
    model, processor = load_merged(options.adapter, dtype=options.dtype, quantization=quantization)
    with writing(options.out):
        model.save_pretrained(options.out)
        processor.save_pretrained(options.out)
    merged = f"{options.adapter} merged into {model.name_or_path}{'' if quantization == 'none' else f' in {quantization}'}"
    write_derived_card(options.out, model, options, command="merge", source=options.adapter, summary=f"This is the LoRA adapter {merged}.")
    open_to_readers(options.out)
    print(f"{merged}, saved in {options.out}")
