"""AMBER: descriptions and yes-or-no questions about 1,004 images (arXiv:2311.07397), as its released script scores them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.amber_generative import Scene, Words, description_values
from mmalign.evaluation.answers import SHORT_ANSWER, AnswerFormat, Question, QuestionsById, question_id
from mmalign.evaluation.benchmark import Benchmark, find_file
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Array, Formula, Metric, combine, harmonic_mean, mean, prefixed, ratio, within
from mmalign.evaluation.rows import read_rows, read_text
from mmalign.evaluation.saved_rows import MODEL_FIELDS
from mmalign.evaluation.word_similarity import choose_similarity
from mmalign.evaluation.yes_no import UNKNOWN, binary_item, binary_values, parse_lmms_eval, parse_strict, parse_vlmevalkit
from mmalign.files import read_json_object
from mmalign.options.evaluate import EvaluateOptions, Mode

GENERATIVE = "generative"
# As captions are cut for CHAIR; AMBER's own text names no limit, and lmms-eval takes 2048.
DESCRIPTION_LENGTH = 512
# Types of the annotations -> kinds. The type of a relation question tells its answer: both are one kind.
KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
# Keys of the result -> kinds.
PARTS = {"existence": ["existence"], "attribute": ["state", "number", "action"]}
PARTS |= {kind: [kind] for kind in ("state", "number", "action", "relation")}
# What the script's counters start at.
START = 0.001


def _percent(top: str, bottom: str, *, start: float = START) -> Formula:
    return ratio(top, bottom, scale=100, start=start, digits=1)


def _question_formulas(*, start: float = START, epsilon: float = 1e-4) -> dict[str, Formula]:
    """No is the positive class. F1 comes from rounded precision and recall."""

    def f1(precision: Array, recall: Array) -> Array:
        return harmonic_mean(precision / 100, recall / 100, epsilon=epsilon) * 100

    precision, recall = _percent("right_no", "said_no", start=start), _percent("right_no", "are_no", start=start)
    return {
        "accuracy": _percent("right", "answers", start=start),
        "precision": precision,
        "recall": recall,
        "f1": combine(f1, precision, recall, digits=1),
        "yes_ratio": _percent("said_yes", "answers", start=0),
    }


QUESTIONS = _question_formulas()
# Before what an answer adds as a harness reads it. VLMEvalKit has these questions; lmms-eval's yes-or-no tasks are taken as they are.
VLMEVALKIT, LMMS_EVAL = "vlmevalkit_", "lmms_eval_"
ACCURACY = ratio("right", "answers", scale=100)
# Yes is the positive class. An answer that is neither counts in accuracy, and nowhere else.
F1_YES = combine(harmonic_mean, ratio("right_yes", "said_yes", scale=100), ratio("right_yes", "read_yes", scale=100))


def _harness_formulas() -> dict[str, Formula]:
    kinds = {kind: within(PARTS[kind], prefixed(VLMEVALKIT, ACCURACY)) for kind in ("existence", "attribute", "relation")}
    found = {"vlmevalkit/accuracy": mean(list(kinds.values()))}
    found |= {f"vlmevalkit/{kind}/accuracy": formula for kind, formula in kinds.items()}
    return found | {"lmms_eval/accuracy": prefixed(LMMS_EVAL, ACCURACY), "lmms_eval/f1_yes": prefixed(LMMS_EVAL, F1_YES)}


CHAIR = _percent("hallucinated", "nouns")
HAL = combine(lambda clean: 100 - clean, ratio("clean", "descriptions", scale=100, start=START), digits=1)
# Both have one decimal, so that two are exact.
SCORE = combine(lambda chair, f1: (100 - chair + f1) / 2, CHAIR, QUESTIONS["f1"], digits=2)


@dataclass(frozen=True)
class AmberQuestion:
    """A yes-or-no question of one of the annotated types."""

    id: str
    type: str
    is_yes: bool


@dataclass(frozen=True)
class Amber(Benchmark):
    """AMBER's annotations. Metrics are percentages, rounded as the script rounds them; descriptions are scored alike in both modes.

    The paper averages CHAIR and Cog over descriptions; the released code, which this follows, divides sums over the corpus.

    Attributes:
        scenes: What the images of the generative part hold, by id.
        records: The yes-or-no questions.
        asked: Prompts with images, of a query file; empty without one.
        words: How nouns are matched; None where there is nothing to describe.
    """

    name: ClassVar[str] = "amber"
    title: ClassVar[str] = "AMBER"
    source: ClassVar[str] = "data of github.com/junyangwang0410/AMBER, and its archive of images"
    averages: ClassVar[Mapping[str, str]] = {
        "amber/chair": "sums over all descriptions, as the released script; the paper averages descriptions",
        "amber/accuracy": "all questions together",
        "amber/vlmevalkit/accuracy": "plain mean of existence, attribute and relation",
        "amber/lmms_eval/accuracy": "all questions together, that word alone",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "chair": Metric("CHAIR: absent among the named objects", "lower", "percent", drawn=True, formula=CHAIR),
        "cover": Metric("Cover: present objects named", "higher", "percent", drawn=True, formula=_percent("covered", "truth")),
        "hal": Metric("Hal: descriptions with an absent object", "lower", "percent", drawn=True, formula=HAL),
        "cog": Metric("Cog: absent objects that people imagine too", "lower", "percent", drawn=True, formula=_percent("imagined", "hallu")),
        "accuracy": Metric("Accuracy", "higher", "percent", drawn=True, formula=QUESTIONS["accuracy"], constant=True),
        "precision": Metric("Precision of no", "higher", "percent", formula=QUESTIONS["precision"]),
        "recall": Metric("Recall of no", "higher", "percent", formula=QUESTIONS["recall"]),
        "f1": Metric("F1 of no", "higher", "percent", drawn=True, formula=QUESTIONS["f1"], constant=True),
        "yes_ratio": Metric("Share of yes", None, "percent", formula=QUESTIONS["yes_ratio"]),
        "unknown": UNKNOWN,
        "f1_yes": Metric("F1 of yes", "higher", "percent", formula=F1_YES, constant=True),
        "score": Metric("AMBER score", "higher", "percent", drawn=True, formula=SCORE),
    }
    scenes: Mapping[str, Scene]
    records: Sequence[AmberQuestion]
    asked: Sequence[Question]
    words: Words | None

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Amber":
        return load_amber(options.data, similarity=options.similarity)

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """Those of all answers, of the questions by kind, where pooled kinds have a counter each, and as harnesses score them."""
        whole = super().formulas(groups)
        score = whole.pop("score")
        del whole["f1_yes"]
        for part, kinds in PARTS.items():
            of_kind = _question_formulas(start=START * len(kinds), epsilon=1e-3 if part == "existence" else 1e-4)
            whole |= {f"{part}/{name}": within(kinds, formula) for name, formula in of_kind.items()}
        return whole | _harness_formulas() | {"score": score}

    @property
    def form(self) -> AnswerFormat:
        """A JSON array of id and response, or LLaVA's rows."""
        return AnswerFormat(text=(*MODEL_FIELDS, "text", "answer"), row_id=question_id)

    def questions(self) -> list[Question]:
        if not self.asked:
            raise UserError("AMBER's questions are missing: put query_all.json, or the folder query that holds it, beside annotations.json")
        lengths = dict.fromkeys(self.scenes, DESCRIPTION_LENGTH)
        return [question._replace(max_new_tokens=lengths.get(question.id, SHORT_ANSWER)) for question in self.asked]

    def required(self) -> list[str]:
        """All ids of the parts that the data hold."""
        return [*self.scenes, *(item.id for item in self.records)]

    def texts(self) -> dict[str, str]:
        """The yes-or-no questions; descriptions may be asked for in any words."""
        return {question.id: question.prompt for question in self.asked if question.id not in self.scenes}

    def variant(self, *, judged: bool) -> str | None:
        return None if self.words is None else self.words.similarity.name

    def yes_no_ids(self) -> set[str]:
        return {record.id for record in self.records}

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per description, and one per question with its kind as its group."""
        asked = QuestionsById(self.asked)
        found = []
        for identifier in [i for i in self.scenes if i in answers]:
            # Words are there wherever a scene is.
            assert self.words is not None
            answer, scene = answers[identifier], self.scenes[identifier]
            values = description_values(answer, scene, self.words)
            label, clean = ", ".join(scene.truth), bool(values["clean"])
            found.append(make_item(asked[identifier], answer, label=label, correct=clean, group=GENERATIVE, values=values))
        for record in [record for record in self.records if record.id in answers]:
            answer = answers[record.id]
            reply = read_reply(answer, mode=mode)
            values = binary_values(is_yes=record.is_yes, reply=reply) | _harness_values(answer, is_yes=record.is_yes)
            group = KINDS[record.type]
            found.append(binary_item(asked[record.id], answer, is_yes=record.is_yes, reply=reply, group=group, values=values))
        return found


def read_reply(answer: str, *, mode: Mode) -> bool | None:
    """Return whether a reply is yes; None where it is neither."""
    # The script counts exactly "Yes" and "No" and takes anything else, "yes" and "Yes." too, for wrong.
    return {"Yes": True, "No": False}.get(answer) if mode == "official" else parse_strict(answer)


def _harness_values(answer: str, *, is_yes: bool) -> dict[str, float]:
    """What an answer adds as harnesses read it, whatever the mode."""
    theirs, exact = parse_vlmevalkit(answer), parse_lmms_eval(answer)
    values: dict[str, float] = {f"{VLMEVALKIT}answers": 1, f"{VLMEVALKIT}right": int(theirs is is_yes)}
    values |= {f"{LMMS_EVAL}{name}": value for name, value in binary_values(is_yes=is_yes, reply=exact).items()}
    return values | {f"{LMMS_EVAL}read_yes": int(is_yes and exact is not None)}


def load_amber(source: Path, *, similarity: str = "auto") -> Amber:
    """Read AMBER's folder: annotations.json, relation.json, safe_words.txt, and query_all.json for the questions.

    Where ``source`` is one of the query files, only its questions are scored.

    Args:
        source: The folder, its annotations.json, or a query file in it.
        similarity: As in ``choose_similarity``.

    Raises:
        ValueError: If a file is missing, or an object is not among the association words.
    """
    # The released query files stand in a folder below the annotations.
    asked_file = source if source.is_file() and source.name != "annotations.json" else None
    folder = source.parent if source.is_file() else source
    if asked_file is not None and folder.name == "query":
        folder = folder.parent
    annotations_file = find_file(folder, "annotations.json", what="AMBER's annotations")
    queries = [folder / "query_all.json", folder / "query" / "query_all.json"]
    queries_file = asked_file or next((path for path in queries if path.is_file()), queries[0])
    files = [annotations_file]
    asked = []
    if queries_file.is_file():
        files.append(queries_file)
        asked = [Question(str(row["id"]), row["image"], row["query"]) for row in read_rows(queries_file)]
    annotations = read_rows(annotations_file)
    if asked_file is not None:
        ids = {question.id for question in asked}
        annotations = [row for row in annotations if str(row["id"]) in ids]
    scenes = {str(row["id"]): Scene(row["truth"], row["hallu"]) for row in annotations if row["type"] == GENERATIVE}
    items = [_read_item(row, annotations_file) for row in annotations if row["type"] != GENERATIVE]
    words = None
    if scenes:
        words, word_files = _read_words(folder, scenes, similarity=similarity)
        files += word_files
    return Amber(files, scenes, items, asked, words)


def _read_item(row: Mapping[str, Any], path: Path) -> AmberQuestion:
    if row["type"] not in KINDS or row["truth"] not in ("yes", "no"):
        raise UserError(
            f"{path}: {row['id']} is of type {row['type']!r} with truth {row['truth']!r}; expected yes or no, and {', '.join(KINDS)}"
        )
    return AmberQuestion(str(row["id"]), row["type"], row["truth"] == "yes")


def _read_words(source: Path, scenes: Mapping[str, Scene], *, similarity: str) -> tuple[Words, list[Path]]:
    relation_file = find_file(source, "relation.json", what="AMBER's association words")
    safe_file = find_file(source, "safe_words.txt", what="AMBER's safe words")
    associations = read_json_object(relation_file)
    if odd := [
        name for name, words in associations.items() if not isinstance(words, list) or not all(isinstance(word, str) for word in words)
    ]:
        raise UserError(f"{relation_file}: the words of {odd[0]} are {repr(associations[odd[0]])[:40]}; expected a list of texts")
    for identifier, scene in scenes.items():
        unknown = [word for word in (*scene.truth, *scene.hallu) if word not in associations]
        if unknown:
            raise UserError(f"{relation_file} has no {', '.join(unknown)}, which annotation {identifier} holds")
    chosen = choose_similarity(similarity, folder=relation_file.parent)
    safe = frozenset(read_text(safe_file).split("\n"))
    return Words(associations, safe, chosen), [relation_file, safe_file, *chosen.files]
