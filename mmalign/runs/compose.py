"""``mmalign compose``: join a vision encoder and a language model."""

from mmalign.errors import UserError
from mmalign.files import open_to_readers, writing
from mmalign.models.compose import compose_mllm
from mmalign.models.parameters import count_parameters
from mmalign.options.models import ComposeOptions


def run(options: ComposeOptions) -> None:
    """Compose, save model and processor, and print what it is.

    Raises:
        ValueError: If ``out`` exists already, or the halves can't be joined.
    """
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty; choose another --out")
    model, processor = compose_mllm(options)
    with writing(options.out):
        model.save_pretrained(options.out)
        processor.save_pretrained(options.out)
    open_to_readers(options.out)
    print(f"{type(model).__name__} of {count_parameters(model).total:,} parameters saved in {options.out}")
