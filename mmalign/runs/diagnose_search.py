"""``mmalign diagnose --search``: what policy and start say greedily and with beams, and the reward of each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmalign.data.encode import answer_type, encode_questions
from mmalign.data.rows import PairRow
from mmalign.diagnostics.search import Answers, Searcher, describe_answers
from mmalign.options.diagnose import DiagnoseOptions
from mmalign.tables import text_table


def build_searcher(rows: Sequence[PairRow], processor: Any, options: DiagnoseOptions) -> Searcher:
    """Ask what the pairs ask."""
    return Searcher(
        questions=[encode_questions(processor, images=row.images, prompts=[row.prompt]) for row in rows],
        beams=options.search,
        max_new_tokens=options.search_tokens,
        pad_token_id=processor.tokenizer.pad_token_id,
        token_type=answer_type(processor),
        batch_size=options.batch_size,
    )


def score_all(searcher: Searcher, model: nn.Module, said: dict[str, Answers]) -> dict[tuple[str, str], torch.Tensor]:
    """Score what all models said by every search under one of them."""
    return {(who, how): searcher.score(model, answers) for who, found in said.items() for how, answers in found.items()}


def compare_searches(
    said: dict[str, Answers],
    policy: dict[tuple[str, str], torch.Tensor],
    start: dict[tuple[str, str], torch.Tensor],
    options: DiagnoseOptions,
) -> list[dict[str, Any]]:
    """Lay out who answered, by which search, and what the answers are worth."""
    return [
        {"model": who, "search": how, **describe_answers(answers, policy[who, how], start[who, how], beta=options.beta)}
        for who, found in said.items()
        for how, answers in found.items()
    ]


def show_searches(found: Sequence[dict[str, Any]]) -> str:
    """Lay the rows out for a terminal."""
    rows = [
        (f"{one['model']}, {one['search']}", f"{one['reward']:+.3f}", f"{one['policy']:.3f}", f"{one['start']:.3f}", f"{one['tokens']:.1f}")
        for one in found
    ]
    return text_table([("answers", "reward", "log p policy", "log p start", "tokens"), *rows])
