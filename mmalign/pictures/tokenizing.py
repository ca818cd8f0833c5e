"""Pictures of a data set to the codes of a model's own tokenizer of pictures, as columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher

from mmalign.data.images import load_image
from mmalign.data.pictures import CODES, CODES_OF, PICTURE_LIST, picture_values
from mmalign.errors import UserError
from mmalign.models.load import best_device
from mmalign.models.picture_tokens import PictureTokens

_BATCH = 8
"""Rows whose pictures are tokenised at once."""


def add_codes(dataset: Dataset, columns: Sequence[str], tokens: PictureTokens, processor: Any, *, image_root: Path | None) -> Dataset:
    """Add a column of codes beside each column of pictures; codes that are there stay.

    Args:
        dataset: Checked rows.
        columns: Those of pictures; see ``data/pictures.py``.
        tokens: The model's.
        processor: The same.
        image_root: Folder that relative image paths start from.

    Returns:
        The rows, without those whose pictures all have the same codes: they teach nothing.

    Raises:
        ValueError: If codes that are there come from another tokenizer, or are of another number.
    """
    digest = tokens.tokenizer_digest()
    _check_source(dataset, digest)

    def read(rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        count = len(rows[columns[0]])
        each = [{name: values[i] for name, values in rows.items()} for i in range(count)]
        found = [_find_codes(row, columns, tokens.size) for row in each]
        missing = [(row, place) for row, codes in enumerate(found) for place, one in enumerate(codes) if one is None]
        pictures = [load_image(picture_values(each[row], columns)[place], root=image_root) for row, place in missing]
        for (row, place), codes in zip(missing, _tokenize(pictures, tokens, processor), strict=True):
            found[row][place] = codes
        if tuple(columns) == PICTURE_LIST:
            return {CODES[columns[0]]: found}
        return {CODES[name]: [codes[number] for codes in found] for number, name in enumerate(columns)}

    made = dataset.map(
        read,
        batched=True,
        batch_size=_BATCH,
        remove_columns=dataset.column_names,
        keep_in_memory=True,
        # Else the function would be hashed, and the model with it.
        new_fingerprint=Hasher.hash([dataset._fingerprint, digest, list(columns)]),
        desc="tokenising pictures",
    )
    old = [name for name in made.column_names if name in dataset.column_names]
    whole = concatenate_datasets([dataset.remove_columns(old), made], axis=1)
    kept = [i for i, row in enumerate(made) if _differ(row, columns)]
    if len(kept) < len(whole):
        print(
            f"{len(whole) - len(kept):,} of {len(whole):,} rows hold pictures that are the same to the model's tokenizer, and are left out"
        )
    return whole if len(kept) == len(whole) else whole.select(kept)


def _check_source(dataset: Dataset, digest: str) -> None:
    others = set(dataset[CODES_OF] if CODES_OF in dataset.column_names else []) - {digest, None}
    if others:
        raise UserError(
            f"the codes of pictures come from the tokenizer {sorted(others)[0]}, and the model's is {digest}; leave the columns of codes "
            "out to have the pictures tokenised again"
        )


def _find_codes(row: Mapping[str, Any], columns: Sequence[str], size: int) -> list[list[int] | None]:
    """The codes that stand in a row, None for each picture that has none."""
    if tuple(columns) == PICTURE_LIST:
        count, name = len(row[columns[0]]), CODES[columns[0]]
        found = row.get(name) or [None] * count
        if len(found) != count:
            raise UserError(f"{name} has {len(found)} entries for {count} pictures; expected one for each, null where it has no codes")
    else:
        found = [row.get(CODES[name]) for name in columns]
    for codes in found:
        if codes is not None and len(codes) != size:
            raise UserError(
                f"a picture has {len(codes)} codes, and the model's pictures have {size}; leave the columns of codes out, or give the "
                "--picture-side that they were drawn with"
            )
    return list(found)


def _tokenize(pictures: Sequence[Any], tokens: PictureTokens, processor: Any) -> list[list[int]]:
    if not pictures:
        return []
    codes: list[list[int]] = tokens.tokenize(tokens.read_pixels(processor, pictures).to(best_device())).tolist()
    return codes


def _differ(row: Mapping[str, Any], columns: Sequence[str]) -> bool:
    codes = row[CODES[columns[0]]] if tuple(columns) == PICTURE_LIST else [row[CODES[name]] for name in columns]
    return len(codes) == 1 or len(set(map(tuple, codes))) > 1
