"""What ``sample_pairs.py`` sampled, as rows of scored lists."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.row_files import RowWriter, image_cell
from mmalign.data.shards import read_lines
from mmalign.evaluation.answers import Question
from mmalign.files import whole


def read_kept(sampled: Path, *, repeated: bool = False) -> Iterator[dict[str, Any]]:
    """Read the responses and scores of the chunks, at least two per question: each text once, or as often as it was sampled.

    Yields:
        ``index`` of the question, ``responses``, ``scores``, and ``gold``, the teacher's text, where there is one.
    """
    for line in read_lines(sorted((sampled / "chunks").glob("*.jsonl"))):
        if "reason" in line:
            continue
        scored = zip(line["responses"], line["scores"], strict=True)
        good = [(text, score) for text, score in scored if score is not None and text.strip()]
        kept = good if repeated else list(dict(good).items())
        if len(kept) > 1:
            responses, scores = map(list, zip(*kept, strict=True))
            taught = {"gold": line["gold"]} if "gold" in line else {}
            yield {"index": line["index"], "responses": responses, "scores": scores, **taught}


def make_list(kept: Mapping[str, Any], question: Question, *, image_root: Path, suffix: str = "") -> dict[str, Any]:
    """Make a row of what was kept; arguments as of ``read_lists``."""
    row = {
        "id": f"{question.id}/{suffix}" if suffix else question.id,
        "images": [image_cell(question.image, root=image_root, embed=True)],
        "prompt": [{"role": "user", "content": question.prompt}],
    }
    return row | {name: value for name, value in kept.items() if name != "index"}


def read_lists(
    sampled: Path, questions: Sequence[Question], *, image_root: Path, suffix: str = "", repeated: bool = False
) -> Iterator[dict[str, Any]]:
    """Read the chunks as rows: each text once, at least two per row.

    Args:
        sampled: The program's folder.
        questions: Of its source, in its order.
        image_root: Folder of their images, which become bytes.
        suffix: Put behind a question's id, after a slash.
        repeated: Keep a text as often as it was sampled.
    """
    for kept in read_kept(sampled, repeated=repeated):
        yield make_list(kept, questions[kept["index"]], image_root=image_root, suffix=suffix)


def write_lists(sampled: Path, questions: Sequence[Question], *, image_root: Path) -> None:
    """Write ``lists`` beside the chunks, in the place of one that is there: every response with words and a score."""
    with whole(sampled / "lists") as partial:
        writer = RowWriter(partial, name="lists", shard_rows=2000)
        for row in read_lists(sampled, questions, image_root=image_root, repeated=True):
            writer.add(row)
        writer.close()
        shutil.rmtree(sampled / "lists", ignore_errors=True)
