"""Scores of responses by questions that a model answers itself while it sees the image: no label is needed (DSTC, arXiv:2411.13611)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_tools.asking import Asker, build_asker
from data_tools.question_checks import Check, choose_minimax, one_way_share, pass_matrix, score_response
from data_tools.question_sources import Checks, FileQuestions, ObjectChecks, Writer, WrittenChecks, check_id
from data_tools.sampling import build_sampler
from data_tools.scoring import Chosen, Parts, Sampled, Scorer, best_and_worst
from mmalign.engine.choosing import Sampling
from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.object_words import read_synonyms
from mmalign.evaluation.wording import fill_prompt


class QuestionScorer(Scorer):
    """Scores responses by questions that a model answers while it sees the image, and pairs by the scores or by one question."""

    def __init__(self, checks: Checks, ask: Asker, *, wording: str, minimax: bool, append_test: bool, most_one_way: float) -> None:
        """Hold what makes the questions, what answers them and how it is asked, and how pairs are chosen."""
        self.checks, self.ask, self.wording = checks, ask, wording
        self.minimax, self.append_test, self.most_one_way = minimax, append_test, most_one_way

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """See ``score_response``."""
        return [line["scores"] for line in self.lines(items, folder=folder)]

    def lines(self, items: Sequence[Sampled], *, folder: Path) -> list[dict[str, Any]]:
        """Return ``scores`` and the ``checks``: a question, what each response says to it, and the probability of yes."""
        made = self.checks(items, folder=folder)
        asked = [
            Question(check_id(i, 0, check.question), item.question.image, fill_prompt(self.wording, {"question": check.question}))
            for i, item in enumerate(items)
            for check in made[i]
        ]
        yes = self.ask(asked, file=folder / "by_image.jsonl")
        done = [[replace(check, yes=yes.get(check_id(i, 0, check.question))) for check in checks] for i, checks in enumerate(made)]
        return [
            {
                "scores": [score_response(checks, c, named_only=self.checks.named_only) for c in range(len(item.responses))],
                "checks": [asdict(check) for check in checks],
            }
            for item, checks in zip(items, done, strict=True)
        ]

    def fault(self, lines: Iterable[Mapping[str, Any]]) -> str | None:
        """Say so where nearly all answers are the same: the model does not look."""
        answers = [check["yes"] for line in lines for check in line["checks"] if check["yes"] is not None]
        if not answers:
            return "no question has an answer: no response names an object of the word table, or the model says neither yes nor no"
        share = one_way_share(answers)
        if share > self.most_one_way:
            return (
                f"{share:.1%} of {len(answers)} answers to the questions are alike, expected at most {self.most_one_way:.0%}: such answers "
                "don't tell good responses from bad ones; try another --labeler or other --questions, or raise --most-one-way"
            )
        return None

    def choose(self, line: Mapping[str, Any]) -> Chosen | None:
        """Return best and worst by score, or the pair of ``choose_minimax`` with its passes for scores."""
        if not self.minimax:
            return best_and_worst(line["responses"], line["scores"])
        checks = [Check(**check) for check in line["checks"]]
        worded = [c for c, text in enumerate(line["responses"]) if text.strip()]
        passes = [row for c, row in enumerate(pass_matrix(checks)) if c in worded]
        found = choose_minimax(passes)
        if found is None:
            return None
        texts = [line["responses"][worded[c]] for c in (found.chosen, found.rejected)]
        if self.append_test:
            check = checks[found.question]
            texts = [f"{text} {check.question} {'Yes' if (check.yes or 0) > 0.5 else 'No'}." for text in texts]
        return Chosen(texts[0], texts[1], (float(sum(passes[found.chosen])), float(sum(passes[found.rejected]))))


def build_questions(parts: Parts) -> QuestionScorer:
    """Build the scorer that asks questions.

    Raises:
        ValueError: If the words of objects are missing, or a file of questions is none.
    """
    options = parts.options
    if options.append_test and options.select != "minimax":
        raise UserError("--append-test appends the question of --select minimax; give both or neither")
    if "{question}" not in options.ask:
        raise UserError(f"ask is {options.ask!r}; expected a text with {{question}} in it, where the question stands")
    ask = build_asker(parts)
    return QuestionScorer(
        _build_checks(parts, ask),
        ask,
        wording=options.ask,
        minimax=options.select == "minimax",
        append_test=options.append_test,
        most_one_way=options.most_one_way,
    )


def _build_checks(parts: Parts, ask: Asker) -> Checks:
    options = parts.options
    if options.questions == "objects":
        words = parts.words if options.synonyms is None else read_synonyms(options.synonyms.read_text(encoding="utf-8"), strip=True)
        if words is None:
            raise UserError("--questions objects needs the words of objects: --synonyms FILE, one line per object, words split by commas")
        return ObjectChecks(words)
    if options.questions != "written":
        return WrittenChecks(ask, FileQuestions(Path(options.questions)))
    drawn = replace(options, samples=1)
    sampler = build_sampler(drawn, Sampling(), parts.load)
    return WrittenChecks(ask, Writer(sampler, number=options.num_questions, image_root=parts.root))
