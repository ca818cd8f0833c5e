"""``mmalign show``: a page of rows as a model will see them, before hours of training on them."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmalign.data.datasets import load_rows
from mmalign.data.encode import EncodedPrompt, encode_chat, encode_items, encode_row, image_token_ids
from mmalign.data.pixels import processed_pictures
from mmalign.data.rows import (
    CHAT_COLUMNS,
    ITEM_COLUMNS,
    LIST_COLUMNS,
    OTHER_NAMES,
    PAIR_COLUMNS,
    read_chat,
    read_items,
    read_list,
    read_pair,
    row_id,
    unused_columns,
)
from mmalign.data.token_texts import token_texts
from mmalign.errors import UserError
from mmalign.models.load import check_exists, load_processor
from mmalign.options.show import ShowOptions
from mmalign.reports.gallery import make_thumbnail
from mmalign.reports.rows_page import Answer, Picture, ShownRow, TokenText, write_rows_page


class Form(NamedTuple):
    """A form of rows: the columns that it needs, and how one is read, encoded and named."""

    columns: tuple[str, ...]
    read: Callable[..., Any]
    encode: Callable[..., EncodedPrompt]
    names: Callable[[Any], list[str]]


FORMS = {
    "response with items": Form(ITEM_COLUMNS, read_items, encode_items, lambda row: ["response"]),
    "list": Form(LIST_COLUMNS, partial(read_list, sampled=True), encode_row, lambda row: [f"score {score:g}" for score in row.scores]),
    "pair": Form(PAIR_COLUMNS, read_pair, encode_row, lambda row: ["chosen", "rejected"]),
    "chat": Form(CHAT_COLUMNS, read_chat, encode_chat, lambda row: ["answers"]),
}
"""By the name that the page gives them, those with the most columns first."""


def run(options: ShowOptions) -> None:
    """Draw rows, encode them as training does, and write the page.

    Raises:
        ValueError: If there are no rows of a known form, or more of the drawn ones are broken than allowed.
    """
    check_exists(options.model, "config.json", "adapter_config.json")
    processor = load_processor(options.model)
    dataset = load_rows(options.data)
    name, form = find_form(dataset.column_names, what=str(options.data))
    drawn = np.random.default_rng(options.seed).permutation(len(dataset))[: options.num_rows]
    rows = [show_row(processor, form, dataset[index], index=index, options=options) for index in sorted(drawn.tolist())]
    broken = sum(bool(row.reason) for row in rows)
    facts = {"Data": str(options.data), "Rows": f"{len(dataset):,}", "Model": options.model, "Seed of the draw": str(options.seed)}
    if unused := unused_columns(dataset.column_names, form.columns):
        facts["Columns that nothing reads"] = ", ".join(unused)
    print(f"saved in {write_rows_page(options.out, title=options.title, form=name, num_rows=len(dataset), rows=rows, facts=facts)}")
    for reason in {row.reason: None for row in rows if row.reason}:
        print(f"broken: {reason}")
    if broken > options.max_reject_share * len(rows):
        raise UserError(f"{broken} of {len(rows)} drawn rows are broken; the reasons are on the page")


def find_form(columns: list[str], *, what: str) -> tuple[str, Form]:
    """Find the form of rows by their columns.

    Raises:
        ValueError: If they have none.
    """
    for name, form in FORMS.items():
        if all(column in columns or OTHER_NAMES.get(column) in columns for column in form.columns):
            return name, form
    needed = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in FORMS.items())
    raise UserError(f"{what} has the columns {', '.join(columns)}; expected those of one form ({needed})")


def show_row(processor: Any, form: Form, raw: Mapping[str, Any], *, index: int, options: ShowOptions) -> ShownRow:
    """Read and encode a row as training does; one that training would reject is shown with the reason."""
    try:
        row = form.read(raw, index=index, image_root=options.image_root)
        encoded = form.encode(processor, row, answer_end=options.answer_end, max_length=options.max_length)
    except UserError as error:
        return ShownRow(id=row_id(raw, index=index), reason=str(error))
    prompt, answers = show_tokens(processor, encoded)
    return ShownRow(
        id=row.id,
        source=str(raw.get("source") or ""),
        images=list(map(_picture, row.images)),
        processed=list(map(_picture, processed_pictures(processor.image_processor, encoded.images))),
        num_prompt_tokens=len(encoded.prefix_ids),
        num_image_tokens=sum(text.count for text in prompt if text.kind == "image"),
        prompt=prompt,
        answers=[Answer(name, sum(scored), texts) for name, scored, texts in zip(form.names(row), encoded.scored, answers, strict=True)],
    )


def show_tokens(processor: Any, encoded: EncodedPrompt) -> tuple[list[TokenText], list[list[TokenText]]]:
    """Decode the prompt, and each response behind it, token by token; image tokens in a row are one."""
    placeholders = frozenset(image_token_ids(processor))
    scored = encoded.scored_prefix or [False] * len(encoded.prefix_ids)
    prompt = _decode(processor.tokenizer, encoded.prefix_ids, scored, placeholders)
    answers = []
    for ids, flags in zip(encoded.responses, encoded.scored, strict=True):
        whole = _decode(processor.tokenizer, [*encoded.prefix_ids, *ids], [*scored, *flags], placeholders)
        answers.append(whole[len(prompt) :])
    return prompt, answers


def _decode(tokenizer: Any, ids: list[int], scored: list[bool], placeholders: frozenset[int]) -> list[TokenText]:
    runs = []
    for image, group in groupby(zip(ids, scored, strict=True), key=lambda token: token[0] in placeholders):
        tokens = list(group)
        runs += [(*tokens[0], len(tokens))] if image else [(*token, 0) for token in tokens]
    texts = token_texts(tokenizer, [number for number, _, _ in runs])
    return [
        TokenText(text, "image" if count else "scored" if counts else "context", count)
        for text, (_, counts, count) in zip(texts, runs, strict=True)
    ]


def _picture(image: Image.Image) -> Picture:
    return make_thumbnail(image), f"{image.width} x {image.height}"
