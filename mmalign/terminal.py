"""What other libraries say on the terminal and no user can act on: each such message is named here, and held back."""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable

# Logger -> whether a message of it is held back.
_HELD: dict[str, Callable[[str], bool]] = {
    # Said by every import of bitsandbytes on some processors: an optional kernel for 4-bit weights on a CPU; without it they are slower.
    "bitsandbytes.backends.cpu.ops": lambda text: text.startswith("Failed to load CPU gemm_4bit_forward"),
    # The trainer gives the model the special tokens of the tokenizer, as training needs, and orders checkpoints by their steps.
    "transformers.trainer_utils": lambda text: "were aligned accordingly" in text or text.startswith("mtime may not be reliable"),
    # A vision tower that is taken out of a whole CLIP leaves the text half unread; weights that are missing are another report.
    "transformers.modeling_utils": lambda text: (
        re.search(r"Vision\w* LOAD REPORT", text) is not None
        and not any(status in text for status in ("MISSING", "MISMATCH", "CONVERSION"))
    ),
}


def hold_back_messages() -> None:
    """Hold back messages that no user can act on; call it before the libraries are imported, which it does not do itself."""
    for name in _HELD:
        logging.getLogger(name).addFilter(_keep)
    # PEFT reads an old name of transformers where it makes or loads an adapter.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def quiet_libraries() -> None:
    """Hold back messages and bars, for a command, whose terminal is its own."""
    hold_back_messages()
    # Its bars last for the blink of an eye, and mmalign's own "checking rows" follows.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        # In a file each state of a bar is a line.
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def escape_unprintable() -> None:
    """Print in escapes what the terminal has no letters for: an arrow of a table ended a run where it told what it had made."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _keep(record: logging.LogRecord) -> bool:
    return not _HELD[record.name](record.getMessage())
