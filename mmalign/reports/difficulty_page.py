"""A data set's difficulty scores as one HTML file that asks nothing of the network: gaps, agreement, pairs from easiest to hardest."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mmalign.reports.difficulty_plots import MAX_POINTS, draw_agreement, draw_gaps
from mmalign.reports.findings import join_words
from mmalign.reports.gallery import Caption, Piece, Span, cut_caption
from mmalign.reports.page import render_page
from mmalign.reports.plots import COLOURS, draw_histogram

# More groups than colours are one.
_MAX_GROUPS = len(COLOURS) - 1


@dataclass(frozen=True, kw_only=True)
class DifficultyScores:
    """What a scored data set holds, B pairs.

    Attributes:
        gaps: Proxy -> (B,) score of chosen - score of rejected.
        difficulty: (B,) in [0, 1], 1 = hard.
        quartiles: (B,) from 1, the easiest, to 4.
        group_by: The column that pairs are grouped by.
        groups: (B,) its values.
        by_group: Group -> number of pairs, mean difficulty, accuracy and agreement of the proxies.
        summary: What ``difficulty.json`` holds.
    """

    gaps: Mapping[str, NDArray[np.float64]]
    difficulty: NDArray[np.float64]
    quartiles: Sequence[int]
    group_by: str
    groups: Sequence[str]
    by_group: Mapping[str, Mapping[str, Any]]
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RankedPair:
    """A pair as shown.

    Attributes:
        id: Of the pair.
        rank: From 1, the easiest.
        difficulty: In [0, 1].
        source: Its data source.
        gaps: Proxy -> gap in that proxy's standard deviations.
        images: Their addresses (``make_thumbnail``); empty where there is none, None where it can't be had.
        prompt: The question.
        chosen: The better answer.
        rejected: The other one.
    """

    id: str
    rank: int
    difficulty: float
    source: str
    gaps: Mapping[str, float]
    images: Sequence[str] | None
    prompt: str
    chosen: str
    rejected: str


def write_difficulty_page(
    out: Path, *, title: str, scores: DifficultyScores, pairs: Sequence[RankedPair], facts: Mapping[str, str]
) -> Path:
    """Write the page; equal arguments give equal bytes, and every text in them is shown as text.

    Args:
        out: The HTML file.
        title: Of the page.
        scores: Of all pairs.
        pairs: Those to show, easiest first.
        facts: How it was made: name -> value, in this order.

    Returns:
        ``out``.
    """
    filters = {
        "percent": lambda value: f"{100 * value:.1f}",
        "signed": lambda value: "-" if value is None else f"{value:+.2f}",
    }
    return render_page(
        out,
        "difficulty_page.html.j2",
        filters=filters,
        title=title,
        proxies=list(scores.gaps),
        num_pairs=len(scores.difficulty),
        summary=scores.summary,
        group_by=scores.group_by,
        by_group=scores.by_group,
        headline=_write_headline(scores),
        gap_plots=[_draw_gaps(number, name, scores) for number, name in enumerate(scores.gaps)],
        difficulty_plot=_draw_difficulty(scores),
        agreement_plots=[_draw_agreement(number, found, scores) for number, found in enumerate(scores.summary["proxy_agreement"])],
        max_points=MAX_POINTS,
        pairs=[_show_pair(pair) for pair in pairs],
        facts=facts,
    )


def _write_headline(scores: DifficultyScores) -> str:
    """Say in one sentence how many pairs there are, how often the proxies are right, and how often they agree."""
    right = [f"by the {name} proxy on {(values > 0).mean():.1%}" for name, values in scores.gaps.items()]
    return f"Of {len(scores.difficulty):,} pairs the chosen answer is preferred {join_words(right)}{_all_agree(scores)}."


def _all_agree(scores: DifficultyScores) -> str:
    signs = np.stack([values > 0 for values in scores.gaps.values()])
    together, none = signs.all(0).mean(), (~signs).all(0).mean()
    return f"; by {'both' if len(signs) == 2 else 'all'} on {together:.1%}, by none on {none:.1%}"


def mark_differences(chosen: str, rejected: str) -> tuple[list[Piece], list[Piece]]:
    """Cut both answers at the words that only one of them has there: "right" in the chosen one, "wrong" in the rejected one."""
    words = [list(re.finditer(r"\w+(?:[-'\u2019]\w+)*", text)) for text in (chosen, rejected)]
    first, second = ([match[0] for match in part] for part in words)
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    spans: tuple[list[Span], list[Span]] = ([], [])
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        if tag != "equal":
            for side, begin, stop in ((0, start, end), (1, other_start, other_end)):
                if stop > begin:
                    spans[side].append((words[side][begin].start(), words[side][stop - 1].end()))
    return cut_caption(Caption(chosen, correct=spans[0])), cut_caption(Caption(rejected, hallucinated=spans[1]))


def _draw_gaps(number: int, name: str, scores: DifficultyScores) -> Markup:
    gaps = scores.gaps[name]
    alt = f"Histogram of the {name} gap: positive in {(gaps > 0).mean():.1%} of the pairs, mean {gaps.mean():.3g}, std {gaps.std():.3g}."
    title = f"{name.capitalize()}: right on {(gaps > 0).mean():.1%}"
    return draw_gaps(gaps, name=f"gaps-{number}", title=title, x_label="gap, chosen - rejected", alt=alt)


def _draw_difficulty(scores: DifficultyScores) -> Markup:
    names, inside = sorted(scores.by_group), np.array(scores.groups)
    groups = {name: scores.difficulty[inside == name].tolist() for name in names}
    if not 1 < len(names) <= _MAX_GROUPS:
        groups = {"all pairs": scores.difficulty.tolist()}
    low, middle, high = np.quantile(scores.difficulty, [0.25, 0.5, 0.75])
    alt = f"Histogram of difficulty: a quarter of the pairs are below {low:.2f}, half below {middle:.2f}, three quarters below {high:.2f}."
    return draw_histogram(groups, name="difficulty", title="Difficulty", x_label="difficulty (1 = hard)", alt=alt)


def _draw_agreement(number: int, found: Mapping[str, Any], scores: DifficultyScores) -> Markup:
    one, other = found["proxies"]
    first, second = (values / (values.std() if np.ptp(values) else 1.0) for values in (scores.gaps[one], scores.gaps[other]))
    title = f"{one.capitalize()} and {other}: same verdict on {found['sign_agreement']:.1%}"
    alt = f"Scatter of the gaps of {one} and {other}, a point per pair; same sign in {found['sign_agreement']:.1%}."
    return draw_agreement(first, second, scores.quartiles, names=(one, other), name=f"agreement-{number}", title=title, alt=alt)


def _show_pair(pair: RankedPair) -> dict[str, Any]:
    chosen, rejected = mark_differences(pair.chosen, pair.rejected)
    return {
        "pair": pair,
        "answers": (("Chosen", "var(--right-ink)", chosen), ("Rejected", "var(--wrong-ink)", rejected)),
    }
