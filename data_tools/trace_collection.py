"""Replies of a rubric judge to both orders of each pair, and the files that are made of them."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from data_tools.chat_sets import Chat
from data_tools.chunks import chunk_seed
from data_tools.fields import Messages, assistant, images_of
from data_tools.models import load_on_accelerator
from data_tools.pair_sets import Pair
from data_tools.row_files import RowWriter, written_row
from data_tools.sampling import Sampler, build_decoding, build_sampler
from data_tools.trace_options import TraceOptions
from data_tools.traces import Trace, TraceCounts, choose_chat, choose_pair, mean_gap, read_traces
from data_tools.world_traces import write_trace
from mmalign.data.messages import text_of
from mmalign.data.rejects import Rejects
from mmalign.data.rows import PairRow, read_pair, row_id
from mmalign.data.shards import read_lines
from mmalign.difficulty.fuse import write_columns
from mmalign.errors import UserError
from mmalign.evaluation.judges.rubric import fill_rubric_prompt
from mmalign.files import whole
from mmalign.tables import text_table

SIDES = (1, -1)
"""Of the better response: shown first, then shown second."""
SCORED, SOURCE = "scored.parquet", "rubric"


class Asked(NamedTuple):
    """A pair in one order, as a judge is asked about it."""

    row: int
    side: int
    prompt: str
    shown: tuple[str, str]
    read: Any
    """As the sampler reads it; None where the world judges."""


class TraceCollector:
    """Makes the lines of some pairs: the replies to each order, or the reason why a pair can't be asked about."""

    def __init__(self, options: TraceOptions, dataset: Dataset, *, wording: str) -> None:
        """Hold the pairs; a model is loaded at the first question."""
        self._options, self._dataset, self._wording = options, dataset, wording
        self._decoding = build_decoding(options)
        self._sampler: Sampler | None = None

    def __call__(self, indices: range) -> list[dict[str, Any]]:
        """Ask about all of them at once."""
        asked: list[Asked] = []
        rejected: list[dict[str, Any]] = []
        for index in indices:
            try:
                asked += self._ask(index)
            except UserError as error:
                rejected.append({"index": index, "reason": str(error)})
        replies = self._reply(asked) if asked else []
        lines = [
            {"index": one.row, "side": one.side, "prompt": one.prompt, "responses": own} for one, own in zip(asked, replies, strict=True)
        ]
        return sorted([*lines, *rejected], key=itemgetter("index"))

    def _ask(self, index: int) -> list[Asked]:
        pair = read_pair(self._dataset[index], index=index, image_root=self._options.image_root)
        if len(pair.images) != 1 or len(pair.prompt) != 1:
            raise UserError(f"the pair has {len(pair.images)} images and {len(pair.prompt)} turns; expected one image and one question")
        question = text_of(pair.prompt[0]).strip()
        orders = {1: (pair.chosen, pair.rejected), -1: (pair.rejected, pair.chosen)}
        prompts = {side: fill_rubric_prompt(question, *orders[side], template=self._wording) for side in SIDES}
        return [Asked(index, side, prompts[side], orders[side], self._read(prompts[side], pair)) for side in SIDES]

    def _read(self, prompt: str, pair: PairRow) -> Any:
        return None if self._options.teacher == "world" else self._load().read(prompt, pair.images[0])

    def _load(self) -> Sampler:
        if self._sampler is None:
            load: Callable[[str], tuple[Any, Any]] = partial(load_on_accelerator, dtype=self._options.dtype)
            self._sampler = build_sampler(self._options, self._decoding, load)
        return self._sampler

    def _reply(self, asked: Sequence[Asked]) -> list[list[str]]:
        if self._options.teacher == "world":
            return [[write_trace(self._dataset[one.row], *one.shown)] for one in asked]
        seeds = [chunk_seed(self._options.seed, 2 * one.row + SIDES.index(one.side)) for one in asked]
        return self._load()([one.read for one in asked], seeds=seeds)


def write_traces(dataset: Dataset, chunks: Sequence[Path], options: TraceOptions) -> dict[str, Any]:
    """Write chats, pairs, scored rows and rejects from the finished work.

    Returns:
        How often the judge was right, in all and by source, and what was written.

    Raises:
        ValueError: If too many pairs are broken.
    """
    rejects = Rejects(options.out / "rejects.jsonl", max_share=options.max_reject_share)
    every, by_source = TraceCounts(), defaultdict[str, TraceCounts](TraceCounts)
    gaps: dict[int, float] = {}
    with _replace(options.out / "chats") as chats, _replace(options.out / "pairs") as pairs:
        writers = {"chats": chats, "pairs": pairs}
        for index, lines in groupby(read_lines(chunks), key=itemgetter("index")):
            row, orders = dataset[index], list(lines)
            if "reason" in orders[0]:
                rejects.add(row_id(row, index=index), orders[0]["reason"])
                continue
            traces = [read_traces(line) for line in orders]
            for counts in (every, by_source[str(row.get("source") or "none")]):
                counts.add(trace for own in traces for trace in own)
            gap = mean_gap(traces)
            gaps |= {} if gap is None else {index: gap}
            for line, own in zip(orders, traces, strict=True):
                name = f"{row_id(row, index=index)}/{'first' if line['side'] == 1 else 'second'}"
                for kind, made in _make_rows(row, name, line["prompt"], own, graded=options.graded).items():
                    writers[kind].add(written_row(made, root=options.image_root, embed=options.embed_images))
        rejects.check(len(dataset), final=True)
    _write_scored(dataset, gaps, options.out / SCORED)
    written = {"chats": chats.num_rows, "pairs": pairs.num_rows, "scored": len(gaps)}
    return {"all": asdict(every), "sources": {name: asdict(own) for name, own in sorted(by_source.items())}, "written": written}


@contextmanager
def _replace(folder: Path) -> Iterator[RowWriter]:
    """Write rows to a folder, in the place of one that is there."""
    with whole(folder) as partial:
        writer = RowWriter(partial, name=folder.name, shard_rows=2000)
        yield writer
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)


def _make_rows(row: Mapping[str, Any], name: str, prompt: str, traces: Sequence[Trace], *, graded: bool) -> dict[str, Any]:
    """Make what the replies to one order teach: a chat to imitate, a pair with the margins as scores."""
    asked: Messages = [{"role": "user", "content": prompt}]
    images = images_of(row, "images", "image")
    chat, pair = choose_chat(traces), choose_pair(traces, graded=graded)
    made: dict[str, Any] = {} if chat is None else {"chats": Chat(name, SOURCE, images, asked + assistant(chat.text))}
    if pair is not None:
        best, worst = pair
        sides = (assistant(best.text), assistant(worst.text))
        made["pairs"] = Pair(name, SOURCE, images, asked, *sides, scores=(best.grade, worst.grade))
    return made


def _write_scored(dataset: Dataset, gaps: Mapping[int, float], path: Path) -> None:
    """Write the pairs that both orders say something of: ``gap_rubric``, and each response's share of the points as its score."""
    if not gaps:
        path.unlink(missing_ok=True)
        return
    rows = [{"index": index, "id": row_id(dataset[index], index=index)} for index in gaps]
    columns: dict[str, list[Any]] = {
        "gap_rubric": list(gaps.values()),
        "score_chosen": [(1 + gap) / 2 for gap in gaps.values()],
        "score_rejected": [(1 - gap) / 2 for gap in gaps.values()],
    }
    write_columns(dataset, rows, columns, path)


def tell(record: Mapping[str, Any]) -> str:
    """Tell how the judge did by source, and what was written."""
    header = ["source", "replies", "right", "inconsistent", "ties", "prefer first", "prefer second"]
    rows = [
        [name, own["replies"], f"{own['right'] / own['replies']:.1%}", *(own[key] for key in list(own)[1:] if key != "right")]
        for name, own in [*record["sources"].items(), ("all", record["all"])]
        if own["replies"]
    ]
    written = ", ".join(f"{number:,} {name}" for name, number in record["written"].items())
    return f"{text_table([header, *rows])}\n{written} written"
