"""What a frozen model said, as columns of a data set: a reference's log-probabilities, and a teacher's likeliest tokens.

They are good for one set of weights, one processor, one text and its images. Every row keeps the fingerprint of the first two, a digest
of its own tokens and one of its decoded images, so that stale ones are found before they train anything.

Shape legend: T = tokens of a response, K = response tokens of a conversation, N = tokens of the teacher that are kept of each.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmalign.data.encode import EncodedPrompt
from mmalign.data.images import digest_images
from mmalign.data.rows import ChatRow
from mmalign.errors import UserError

LOGPS = ("reference_logps_chosen", "reference_logps_rejected")
TOKEN_LOGPS = ("reference_token_logps_chosen", "reference_token_logps_rejected")
LIST_LOGPS, LIST_TOKEN_LOGPS = "reference_logps_responses", "reference_token_logps_responses"
REFERENCE_TEXT, REFERENCE_IMAGES, REFERENCE_FINGERPRINT = "reference_text", "reference_images", "reference_fingerprint"
CELL_LOGPS = "reference_logps_"
"""What the columns of cells begin with, as those of a pair's own answers do."""
REFERENCE_VIEWS = "reference_views"
"""Of all texts and images of a row, where other images than its own were asked about."""
_REFERENCE = (REFERENCE_TEXT, REFERENCE_IMAGES, REFERENCE_FINGERPRINT)
REFERENCE_COLUMNS = (*LOGPS, *TOKEN_LOGPS, *_REFERENCE)
REFERENCE_LIST_COLUMNS = (LIST_LOGPS, LIST_TOKEN_LOGPS, *_REFERENCE)

TOP_IDS, TOP_LOGPS, VOCABULARY = "teacher_top_ids", "teacher_top_logps", "teacher_vocabulary"
TEACHER_TEXT, TEACHER_IMAGES, TEACHER_FINGERPRINT = "teacher_text", "teacher_images", "teacher_fingerprint"
TEACHER_COLUMNS = (TOP_IDS, TOP_LOGPS, VOCABULARY, TEACHER_TEXT, TEACHER_IMAGES, TEACHER_FINGERPRINT)


def cache_pair(encoded: EncodedPrompt, chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Write a pair's columns, all but the reference's fingerprint, which all rows share.

    Args:
        encoded: The pair.
        chosen: (T,) token log-probabilities of the chosen response, float32.
        rejected: The same of the rejected one.
    """
    tokens = (chosen, rejected)
    sums = {name: value.sum().item() for name, value in zip(LOGPS, tokens, strict=True)}
    by_token = {name: value.tolist() for name, value in zip(TOKEN_LOGPS, tokens, strict=True)}
    return {**sums, **by_token, **_identify(encoded)}


def cache_list(encoded: EncodedPrompt, responses: Sequence[Tensor]) -> dict[str, Any]:
    """Write the columns of a prompt with several responses, all but the fingerprint.

    Args:
        encoded: The prompt.
        responses: (T,) token log-probabilities of each response, float32.
    """
    sums, by_token = [value.sum().item() for value in responses], [value.tolist() for value in responses]
    return {LIST_LOGPS: sums, LIST_TOKEN_LOGPS: by_token, **_identify(encoded)}


def _identify(encoded: EncodedPrompt) -> dict[str, str]:
    return {REFERENCE_TEXT: digest_text(encoded), REFERENCE_IMAGES: encoded.image_digest}


def cache_teacher(row: ChatRow, encoded: EncodedPrompt, ids: Tensor, logps: Tensor, *, vocabulary: int) -> dict[str, Any]:
    """Write a conversation's columns, all but the teacher's fingerprint.

    Args:
        row: The conversation.
        encoded: The same as the teacher's processor reads it.
        ids: (K, N) the teacher's likeliest tokens.
        logps: (K, N + 1) their log-probabilities, and that of all others together.
        vocabulary: Tokens of the teacher.
    """
    return {
        TOP_IDS: ids.flatten().cpu().numpy(),
        TOP_LOGPS: logps.flatten().cpu().numpy(),
        VOCABULARY: vocabulary,
        TEACHER_TEXT: digest_answers(row, encoded),
        TEACHER_IMAGES: encoded.image_digest,
    }


def digest_text(encoded: EncodedPrompt) -> str:
    """Hash a prompt's and its responses' token ids, image tokens included, to 16 hex digits."""
    return _digest([encoded.prefix_ids, encoded.responses])


def digest_views(prompts: Sequence[EncodedPrompt]) -> str:
    """Hash the token ids and images of a row that is seen with several images to 16 hex digits."""
    return _digest([[prompt.prefix_ids, prompt.responses, prompt.image_digest] for prompt in prompts])


def cell_logps(cell: tuple[str, str]) -> str:
    """Name the column of a cell: an image and a response."""
    image, response = cell
    return f"{CELL_LOGPS}{response}_{image}"


def cache_cells(prompts: Sequence[EncodedPrompt], cells: Sequence[tuple[str, str]], logps: Sequence[Tensor]) -> dict[str, Any]:
    """Write the columns of a pair's cells, its own two answers left out.

    Args:
        prompts: One for each image.
        cells: An image and a response each, in the order of the prompts' responses.
        logps: (T,) token log-probabilities of each.
    """
    own = {("own", "chosen"), ("own", "rejected")}
    sums = {cell_logps(cell): values.sum().item() for cell, values in zip(cells, logps, strict=True) if tuple(cell) not in own}
    return {**sums, REFERENCE_VIEWS: digest_views(prompts)}


def digest_answers(row: ChatRow, encoded: EncodedPrompt) -> str:
    """Hash a conversation's text and its answers' token ids to 16 hex digits; not image tokens, which models have of their own."""
    return _digest([row.messages, encoded.responses, encoded.scored])


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def check_images(where: Path, row_id: str, held: str, images: Sequence[Image.Image]) -> None:
    """Check that a row's images are those that a shard of a cache was made from.

    Raises:
        ValueError: With both digests.
    """
    found = digest_images(images)
    if held != found:
        raise UserError(
            f"{where} was made from the images {held or 'none'} of row {row_id}, and they are {found or 'none'} now; remove the shards of "
            "images that changed to have them made anew, or choose another --out"
        )
