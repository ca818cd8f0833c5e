"""What all programs of this folder share: options and errors are treated as ``mmalign`` treats them."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mmalign.config import parse_options
from mmalign.errors import run_and_tell, take_traceback

Options = TypeVar("Options")


def run_program(
    run: Callable[[Options], None], options_class: type[Options], argv: Sequence[str] | None, *, file: str, doc: str | None
) -> int:
    """Parse the command line and call ``run``.

    Args:
        run: The program.
        options_class: Dataclass of its options.
        argv: Words of the command line; those of the process where None.
        file: The program's ``__file__``, for its name.
        doc: The program's docstring; its first paragraph describes it in ``--help``.

    Returns:
        0; 1 where the machine failed, 2 where the input can't be used; the reason is printed.
    """
    prog = Path(file).name
    description = " ".join((doc or "").split("\n\n")[0].split())
    words, traced = take_traceback(sys.argv[1:] if argv is None else argv)
    options = parse_options(options_class, words, prog=prog, description=description)
    return run_and_tell(lambda: run(options), prog=prog, traced=traced)
