"""``mmalign upcycle``: turn a dense model into a mixture of experts that computes the same."""

from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from mmalign.errors import UserError
from mmalign.files import open_to_readers, writing
from mmalign.models.identity import IDENTITY_TOLERANCE, compute_largest_difference
from mmalign.models.load import load_config, load_mllm
from mmalign.models.parameters import count_parameters
from mmalign.models.quantize import is_quantized
from mmalign.models.stages import DENSE_STAGES, SPARSE_STAGES, count_trainable
from mmalign.models.upcycle import find_sparse_layers, upcycle
from mmalign.options.models import UpcycleOptions
from mmalign.runs.cards import write_derived_card
from mmalign.tables import text_table


class Upcycled(NamedTuple):
    """A sparse model, the processor of the dense one, and the folder that holds them."""

    folder: Path
    model: PreTrainedModel
    processor: Any


def run(options: UpcycleOptions) -> Upcycled:
    """Upcycle, compare with the dense model, save in its precision with a card, and print its parameters.

    Raises:
        ValueError: If ``out`` is not empty, the model can't be upcycled, or the sparse one computes something else.
    """
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty; choose another --out")
    dense, processor = load_mllm(options.model, dtype="float32")
    if not isinstance(dense, PreTrainedModel):
        raise UserError(f"{options.model} is a LoRA adapter; merge it into its base model with mmalign merge and upcycle that")
    if is_quantized(dense):
        raise UserError(f"{options.model} is quantised; upcycle the checkpoint that it was made from")
    sparse = upcycle(dense, options)
    difference = compute_largest_difference(dense, sparse)
    # Not "difference > tolerance", which a NaN would pass.
    if not difference <= IDENTITY_TOLERANCE:
        raise UserError(
            f"logits of the sparse model differ by {difference:.2g} of the largest one (tolerance {IDENTITY_TOLERANCE:g}): this "
            f"{type(dense).__name__} can't be upcycled exactly; please report its class"
        )
    print(format_card(dense, sparse, find_sparse_layers(options.layers, dense.config.get_text_config().num_hidden_layers)))
    print(f"largest difference from the dense model's logits, relative to the largest: {difference:.1e} (float32)")
    dtype = load_config(options.model).dtype
    sparse = sparse if dtype is None else sparse.to(dtype)
    with writing(options.out):
        sparse.save_pretrained(options.out)
        processor.save_pretrained(options.out)
    made = f"{options.num_experts} copies of feed-forward networks, {options.top_k} per token; it computes what the dense model computes"
    summary = f"This is {options.model} upcycled to a mixture of experts: {made}."
    write_derived_card(options.out, sparse, options, command="upcycle", source=options.model, summary=summary)
    open_to_readers(options.out)
    print(f"saved in {options.out}")
    return Upcycled(options.out, sparse, processor)


def format_card(dense: PreTrainedModel, sparse: PreTrainedModel, sparse_layers: tuple[int, ...]) -> str:
    """Lay out total, activated and trainable parameters; the first two stages train the dense model."""
    text = sparse.config.get_text_config()
    before, after = count_parameters(dense), count_parameters(sparse)
    where = f"{len(sparse_layers)} of {text.num_hidden_layers} layers ({', '.join(map(str, sparse_layers))})"
    rows = [("parameters", "dense", "sparse")]
    rows += [("total", f"{before.total:,}", f"{after.total:,}"), ("activated", f"{before.activated:,}", f"{after.activated:,}")]
    rows += [(f"trainable, {stage}", f"{count_trainable(dense, frozen):,}", "") for stage, frozen in DENSE_STAGES.items()]
    rows += [(f"trainable, {stage}", "", f"{count_trainable(sparse, frozen):,}") for stage, frozen in SPARSE_STAGES.items()]
    lines = [text_table(rows)]
    head = f"{type(sparse).__name__} with {text.model_type}: {text.num_experts_per_tok} of {text.num_experts} experts per token in {where}"
    if text.num_experts_per_tok == 1:
        lines.append("with top_k 1 the weight of the chosen expert is always 1: the router learns from the balance loss alone")
    return "\n".join([head, *lines])
