"""A teacher's likeliest next tokens as columns of a data set: what a student mimics without the teacher in memory.

Of every response token the cache has the ids of the teacher's k likeliest tokens, their log-probabilities, and that of all others together.

Shape legend: K = response tokens, N = tokens kept of each.
"""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from mmalign.data.encode import EncodedPrompt
from mmalign.data.rows import ChatRow
from mmalign.engine.distillation import TeacherStates, TopTokens
from mmalign.engine.head import chunks

TOP_IDS, TOP_LOGPS, VOCABULARY = "teacher_top_ids", "teacher_top_logps", "teacher_vocabulary"
TEXT, IMAGES, FINGERPRINT = "teacher_text", "teacher_images", "teacher_fingerprint"
COLUMNS = (TOP_IDS, TOP_LOGPS, VOCABULARY, TEXT, IMAGES, FINGERPRINT)


@torch.no_grad()
def find_top_tokens(teacher: TeacherStates, number: int, *, vocabulary: int) -> TopTokens:
    """Find each token's likeliest successors, chunk by chunk.

    Args:
        teacher: From ``compute_teacher_states``.
        number: N, below ``vocabulary``.
        vocabulary: Tokens of the teacher; padding rows of its head are left out.

    Returns:
        Ids (K, N) and log-probabilities (K, N + 1), float32.
    """
    head = teacher.head.cut(vocabulary)
    found: list[tuple[Tensor, Tensor]] = []
    for part in chunks(len(teacher.hidden), vocabulary):
        logps = head.logits(teacher.hidden[part]).log_softmax(-1)
        values, ids = logps.topk(number)
        # Summed over the others themselves: 1 - the named ones cancels where the teacher is sure.
        found.append((ids, torch.cat([values, logps.scatter_(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)], -1)))
    return TopTokens(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def digest_answers(row: ChatRow, encoded: EncodedPrompt) -> str:
    """Hash a conversation's text and its answers' token ids to 16 hex digits; not image tokens, which models have of their own."""
    return hashlib.sha256(json.dumps([row.messages, encoded.responses, encoded.scored]).encode()).hexdigest()[:16]


def cache_columns(row: ChatRow, encoded: EncodedPrompt, top: TopTokens, *, vocabulary: int, fingerprint: str) -> dict[str, Any]:
    """Write one row's columns.

    Args:
        row: The conversation.
        encoded: The same as the teacher's processor reads it.
        top: Of its scored tokens.
        vocabulary: As given to ``find_top_tokens``.
        fingerprint: Of the teacher.
    """
    return {
        TOP_IDS: top.ids.flatten().cpu().numpy(),
        TOP_LOGPS: top.logps.flatten().cpu().numpy(),
        VOCABULARY: vocabulary,
        TEXT: digest_answers(row, encoded),
        IMAGES: encoded.image_digest,
        FINGERPRINT: fingerprint,
    }
