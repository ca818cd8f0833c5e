"""From rows with a good response to pairs with a made-up worse one: what the builders of negatives share."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.chunks import run_chunks
from data_tools.fields import assistant
from data_tools.negative_options import NegativeOptions
from data_tools.pair_sets import Pair
from data_tools.row_files import RowWriter, checked_pair, written_row
from mmalign.data.datasets import hash_data_files, load_rows
from mmalign.data.images import load_image
from mmalign.data.messages import Message, read_messages, text_of
from mmalign.data.rejects import Rejects
from mmalign.data.rows import ChatRow, place_row_images, read_chat, row_id, split_pair
from mmalign.data.shards import read_lines
from mmalign.errors import UserError
from mmalign.files import whole

# The rejected responses to some rows: a text, or a ValueError that tells why there is none.
Answers = list[str | ValueError]


def build_negatives(
    options: NegativeOptions, rejected: Callable[[Sequence[ChatRow], int], Answers], *, settings: Mapping[str, Any], size: int, source: str
) -> None:
    """Make a rejected response to each row, and write the pairs.

    Args:
        options: Where rows come from and pairs go.
        rejected: Makes the responses of the rows of a chunk; its second argument is the chunk's first index, to seed from.
        settings: All that decides the responses, beside the data.
        size: Rows a chunk.
        source: Put behind each row's own source.
    """
    dataset = load_rows(options.data)
    rejects: Rejects | None = None
    seen = 0

    def work(indices: range) -> list[dict[str, Any]]:
        nonlocal rejects, seen
        # Not earlier: a folder that is refused keeps its own list.
        rejects = rejects or Rejects(options.out / "rejects.jsonl", max_share=options.max_reject_share)
        # Here as well as at the end: hours of a run that can only fail are not worth having.
        rejects.check(seen)
        lines: dict[int, dict[str, Any]] = {}
        good: dict[int, ChatRow] = {}
        for index in indices:
            raw = dataset[index]
            try:
                good[index] = read_answered(raw, index=index, image_root=options.image_root)
            except UserError as error:
                lines[index] = {"index": index, "reason": str(error)}
        answers = rejected(list(good.values()), indices.start) if good else []
        for index, answer in zip(good, answers, strict=True):
            lines[index] = {"index": index, **({"reason": str(answer)} if isinstance(answer, ValueError) else {"rejected": answer})}
        for index, line in lines.items():
            if "reason" in line:
                rejects.add(row_id(dataset[index], index=index), line["reason"])
        seen += len(indices)
        return [lines[index] for index in sorted(lines)]

    hashes = hash_data_files(options.data)
    # The root decides which images are found: rows rejected for a wrong one must not stay rejected under the right one.
    root = None if options.image_root is None else str(options.image_root)
    fingerprint = {"data": hashes, "image_root": root, **settings}
    chunks = run_chunks(len(dataset), work, out=options.out, fingerprint=fingerprint, size=size, label=source)

    def pair(line: Mapping[str, Any]) -> tuple[str, Pair | None]:
        raw = dataset[line["index"]]
        name = row_id(raw, index=line["index"])
        if "reason" in line:
            raise RejectedRow(name, line["reason"])
        messages, images = split_answered(raw)
        own = str(raw.get("source") or "")
        answers = (assistant(text_of(messages[-1])), assistant(line["rejected"]))
        return name, Pair(name, f"{own}/{source}" if own else source, images, messages[:-1], *answers)

    write_pairs(
        chunks, pair, out=options.out, image_root=options.image_root, embed=options.embed_images, max_share=options.max_reject_share
    )


class RejectedRow(UserError):
    """A row that gives no pair, by its id."""

    def __init__(self, name: str, reason: str) -> None:
        """Hold the id and the reason."""
        super().__init__(reason)
        self.name = name


def write_pairs(
    chunks: Sequence[Path],
    pair: Callable[[Mapping[str, Any]], tuple[str, Pair | None]],
    *,
    out: Path,
    image_root: Path | None,
    embed: bool,
    max_share: float,
) -> None:
    """Turn the lines of all chunks into ``OUT/pairs``; lines that give none go to the rejects.

    Args:
        chunks: The finished work.
        pair: Makes a line's id and pair; None is a line that needs none. Raises RejectedRow with the reason.
        out: Folder of the result.
        image_root: Folder that image paths start from.
        embed: Whether paths become bytes.
        max_share: Largest tolerated share of rejected lines.
    """
    rejects = Rejects(out / "rejects.jsonl", max_share=max_share)
    with whole(out / "pairs") as partial:
        writer = RowWriter(partial, name="pairs", shard_rows=2000)
        seen = without = 0
        for line in read_lines(chunks):
            seen += 1
            name = str(line["index"])
            try:
                name, made = pair(line)
                if made is None:
                    without += 1
                    continue
                checked_pair(made, [load_image(value, root=image_root) for value in made.images])
                writer.add(written_row(made, root=image_root, embed=embed))
            except UserError as error:
                rejects.add(error.name if isinstance(error, RejectedRow) else name, str(error))
        writer.close()
        rejects.check(seen, final=True)
        if not writer.num_rows:
            raise UserError(f"no pair from {seen} rows ({without} without two unequal responses); reasons, if any, are in {rejects.path}")
        shutil.rmtree(out / "pairs", ignore_errors=True)
    print(f"{writer.num_rows:,} pairs in {out / 'pairs'}, {rejects.num_rejected:,} rows rejected, {without:,} without a pair")


def split_answered(raw: Mapping[str, Any]) -> tuple[list[Message], list[Any]]:
    """Return the conversation of a row up to its good response, in parts, and its images in the order of their places, undecoded.

    Raises:
        ValueError: If the row holds none, with the reason.
    """
    if raw.get("messages") is not None:
        return place_row_images(raw, read_messages(raw["messages"], "messages"), "messages")
    if raw.get("chosen") is None:
        if raw.get("conversations") is None:
            raise UserError(f"a row needs messages, or prompt and chosen; it has {', '.join(raw)}")
        return place_row_images(raw, read_messages(raw["conversations"], "conversations"), "conversations")
    prompt, chosen, _ = split_pair({**raw, "rejected": raw["chosen"] if raw.get("rejected") is None else raw["rejected"]})
    if prompt[-1]["role"] != "user":
        raise UserError("the prompt ends with an answer that has begun; no other one is made of its rest")
    placed, images = place_row_images(raw, prompt, "prompt")
    return [*placed, Message(role="assistant", content=[{"type": "text", "text": chosen}])], images


def read_answered(raw: Mapping[str, Any], *, index: int, image_root: Path | None) -> ChatRow:
    """Decode and check a row with a good response; its messages end with that."""
    messages, images = split_answered(raw)
    return read_chat({"id": raw.get("id"), "images": images, "messages": messages}, index=index, image_root=image_root)
