"""What a user can cause and mend: told in one line. Anything else is a fault of ours and shows its traceback."""

import os
import sys
from collections.abc import Callable, Sequence

from mmalign.terminal import escape_unprintable


class UserError(ValueError):
    """An input that can't be used: the message has the value, what was expected, and the next step."""


def take_traceback(words: Sequence[str]) -> tuple[list[str], bool]:
    """Return the words of a command line without ``--traceback``, and whether a user's faults show theirs."""
    traced = "--traceback" in words or bool(os.environ.get("MMALIGN_DEBUG"))
    return [word for word in words if word != "--traceback"], traced


def run_and_tell(run: Callable[[], object], *, prog: str, traced: bool) -> int:
    """Run a program; what its user or the machine is at fault for is told in a line.

    Args:
        run: The program.
        prog: Its name, which the line begins with.
        traced: Raise a user's faults instead.

    Returns:
        0; 1 where the machine failed (a full disk, a folder that can't be written), 2 where the user's input can't be used.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once it is told.
    """
    escape_unprintable()
    try:
        run()
    except (UserError, FloatingPointError, FileNotFoundError) as error:
        if traced:
            raise
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except (FileExistsError, NotADirectoryError) as error:
        if traced:
            raise
        print(f"{prog}: error: {error}; a file stands where a folder is expected, choose another path", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{prog}: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if not traced:
            print(f"{prog}: interrupted; what is finished is kept", file=sys.stderr)
            # Raised on, as only a program that the signal ended stops a shell's loop; where it was is nobody's question.
            sys.excepthook = lambda *_: None
        raise
    return 0
