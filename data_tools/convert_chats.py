"""Convert a public instruction set, in LLaVA's JSON, to chats (images, messages, id, source) in Parquet.

    python data_tools/convert_chats.py llava-mix665k llava_v1_5_mix665k.json --image-root data/ --out mix665k
    mmalign train sft --model llava --data mix665k/chats --image-root data/ --out tuned

SET is llava for any file in LLaVA's form (conversations of human and gpt), or the name of one of the sets that LLaVA-MoD's stages are
made of, which stands in the column source. FILES are JSON, JSONL or Parquet files, or folders of them. Every chat is checked as training
will check it, images decoded; a broken one goes to OUT/rejects.jsonl with its reason. Chats without an image stay, unless --images-only.
Rows stream through, so memory stays the same whatever the size of the set. ``mmalign train`` reads LLaVA's files directly too; converted
ones are checked once, of one form, and may hold their images.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_tools.chat_sets import CHAT_SETS
from data_tools.conversion import ConversionOptions, Form, convert_files
from data_tools.program import run_program

SetName = Literal[
    "llava", "llava-pretrain", "llava-mix665k", "sharegpt4v", "allava", "svit", "lvis-instruct4v", "lrv", "mimic-it", "mobilevlm-v2",
    "internvl-sft",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ConversionOptions):
    """Options of ``convert_chats.py``."""

    set: SetName = field(metadata={"positional": True})
    """whose files they are"""
    images_only: bool = False
    """leave chats without an image out"""


def run(options: ChatOptions) -> None:
    """Convert all files."""
    from data_tools.row_files import checked_chat

    form = Form(
        kind="chats",
        read=lambda record, where: [CHAT_SETS[options.set](record, where)],
        check=checked_chat,
        left_out={"without_image": lambda rows: options.images_only and not rows[0].images},
    )
    convert_files(options, form, {"images_only": options.images_only})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, ChatOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
