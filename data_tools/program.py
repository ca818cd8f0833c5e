"""What all programs of this folder share: options parsed as ``mmalign`` does, and errors of the user in one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mmalign.config import parse_options
from mmalign.errors import UserError

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
        0, or 2 where the input can't be used; the reason is printed.
    """
    prog = Path(file).name
    description = " ".join((doc or "").split("\n\n")[0].split())
    options = parse_options(options_class, list(sys.argv[1:] if argv is None else argv), prog=prog, description=description)
    try:
        run(options)
    except (UserError, FileNotFoundError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    return 0
