"""What a comparison says, in sentences that are computed from it: there is no preset winner."""

from collections.abc import Sequence

from mmalign.reports.comparison import EvalRun, Group, Row


def write_headline(groups: Sequence[Group], names: Sequence[str]) -> str:
    """State one metric of every model: the first that counts errors, or else the first of all; empty where none is drawn."""
    rows = [row for group in groups for row in _compared(group)]
    row = next((row for row in rows if row.info.better == "lower"), rows[0] if rows else None)
    if row is None:
        return ""
    unit = "" if row.info.unit == "number" else "%"
    values = [f"{cell.text}{unit} with {name}" for name, cell in zip(names, row.cells, strict=True) if cell.text != "-"]
    return f"{row.info.label}: {join_words(values)}."


def write_findings(groups: Sequence[Group], runs: Sequence[EvalRun]) -> list[str]:
    """Compare each model with the first and with the one before it, a sentence per benchmark, where differences have intervals."""
    pairs = [(mine, other) for mine in range(1, len(runs)) for other in dict.fromkeys((0, mine - 1))]
    sentences = [_compare(group, runs, mine, other) for mine, other in pairs for group in groups]
    return [sentence for sentence in sentences if sentence]


def join_words(parts: Sequence[str]) -> str:
    """One, two and three."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _compare(group: Group, runs: Sequence[EvalRun], mine: int, other: int) -> str:
    verdicts: dict[str, list[str]] = {"better in": [], "worse in": [], "no clear difference in": []}
    ranges = runs[mine].differences.get(runs[other].name, {})
    for row in _compared(group):
        if row.key in ranges:
            low, high = ranges[row.key]
            sign = -1 if row.info.better == "lower" else 1
            verdict = "better in" if min(sign * low, sign * high) > 0 else "worse in" if max(sign * low, sign * high) < 0 else None
            words = f"{_lower(row.info.label)} ({row.cells[mine].text} vs {row.cells[other].text})"
            verdicts[verdict or "no clear difference in"].append(words)
    parts = [f"{verdict} {join_words(found)}" for verdict, found in verdicts.items() if found]
    return f"{runs[mine].name} against {runs[other].name}, {group.title.split(':')[0]}: {'; '.join(parts)}." if parts else ""


def _compared(group: Group) -> list[Row]:
    """Rows for the whole benchmark of which more, or less, is better."""
    return [row for row in group.rows if row.is_whole and row.info.drawn and row.info.better in ("lower", "higher")]


def _lower(label: str) -> str:
    """Set a label inside a sentence, without what stands behind its colon; a name such as F1 keeps its capital."""
    label = label.partition(":")[0] if label[1:2].islower() else label
    return label[0].lower() + label[1:] if label[1:2].islower() else label
