"""DASH-B: is an object to be seen, in images that models take to hold it and that don't, and in images that do (arXiv:2503.23573)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, question_id
from mmalign.evaluation.benchmark import QuestionBenchmark, find_file
from mmalign.evaluation.items import Item
from mmalign.evaluation.metrics import Formula, Metric, combine, harmonic_mean, ratio, within
from mmalign.evaluation.saved_rows import MODEL_FIELDS
from mmalign.evaluation.yes_no import UNKNOWN, binary_item, parse_anywhere, parse_strict
from mmalign.files import read_json_object
from mmalign.options.evaluate import EvaluateOptions, Mode

# The README's has a full stop in place of the question mark; this is what the script asks.
PROMPT = "Can you see a {name} in this image? Please answer only with yes or no."
# The folder of the images -> whether they hold the object. The file of each is dash_benchmark_<folder>.json.
SIDES = {"neg": False, "pos": True}
TNR, TPR = ratio("right_no", "are_no"), ratio("right_yes", "are_yes")
HARMONIC_MEAN = combine(harmonic_mean, TPR, TNR)


@dataclass(frozen=True)
class DashQuestion:
    """One image and the object that is asked for.

    Attributes:
        id: side/object/file, which the published answers tell too.
        source: The data set that the object's name is from.
    """

    id: str
    image: str
    text: str
    source: str
    is_yes: bool


@dataclass(frozen=True)
class DashB(QuestionBenchmark):
    """As many images without their object as with it, 70 objects. Fractions, except ``unknown``, a count."""

    name: ClassVar[str] = "dash-b"
    title: ClassVar[str] = "DASH-B: can you see a ...?"
    source: ClassVar[str] = "images of github.com/YanNeu/DASH-B: both lists, and neg.zip and pos.zip unpacked beside them"
    averages: ClassVar[Mapping[str, str]] = {
        "dash_b/accuracy": "all images together, which are half of each kind",
        "dash_b/harmonic_mean": "of TNR and TPR over all objects",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("Accuracy", "higher", "share", drawn=True, formula=ratio("right", "answers"), constant=True),
        "tnr": Metric("Right without the object (TNR)", "higher", "share", drawn=True, formula=TNR),
        "tpr": Metric("Right with the object (TPR)", "higher", "share", drawn=True, formula=TPR),
        "harmonic_mean": Metric("Harmonic mean of both", "higher", "share", drawn=True, formula=HARMONIC_MEAN, constant=True),
        "yes_ratio": Metric("Share of yes", "near_half", "share", formula=ratio("said_yes", "answers")),
        "unknown": UNKNOWN,
    }
    records: Sequence[DashQuestion]

    @classmethod
    def load(cls, options: EvaluateOptions) -> "DashB":
        return load_dash_b(options.data)

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """Those of all questions, and the harmonic mean by where the object's name is from."""
        return super().formulas(groups) | {f"{group}/harmonic_mean": within([group], HARMONIC_MEAN) for group in groups}

    @property
    def form(self) -> AnswerFormat:
        """The original's rows: img_id, object_name, gt, response; rows by question_id."""
        return AnswerFormat(text=(*MODEL_FIELDS, "text", "answer"), row_id=_row_id)

    def texts(self) -> dict[str, str]:
        """None: the paper asks in twenty wordings, each of them of the same object and image."""
        return {}

    def images_in(self, folder: Path) -> Path:
        """The release's archives are unpacked beside the lists."""
        return folder if (folder / "neg").is_dir() else super().images_in(folder)

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per image; the sources of the objects' names are the groups."""
        parse = parse_anywhere if mode == "official" else parse_strict
        return [
            binary_item(question, answers[one.id], is_yes=one.is_yes, reply=parse(answers[one.id]), group=one.source)
            for one, question in self.answered(answers)
        ]


def _row_id(row: Mapping[str, Any]) -> str | None:
    if not {"img_id", "object_name", "gt"} <= set(row):
        return question_id(row)
    side = next((side for side, is_yes in SIDES.items() if row["gt"] == ("yes" if is_yes else "no")), row["gt"])
    return f"{side}/{row['object_name']}/{row['img_id']}"


def load_dash_b(source: Path) -> DashB:
    """Read ``dash_benchmark_neg.json`` and ``dash_benchmark_pos.json``: source -> object -> names of images.

    Args:
        source: Their folder, ``images`` of the release or the folder above it.

    Raises:
        ValueError: If a file is missing or of another form, or an image stands twice.
    """
    folder = source / "images" if (source / "images" / "dash_benchmark_neg.json").is_file() else source
    files = [find_file(folder, f"dash_benchmark_{side}.json", what="DASH-B's lists of images") for side in SIDES]
    records = [record for side, file in zip(SIDES, files, strict=True) for record in _read_side(file, side)]
    if not records:
        raise UserError(f"the lists in {folder} are empty; expected source -> object -> names of images")
    if repeated := [i for i, number in Counter(one.id for one in records).items() if number > 1]:
        raise UserError(f"{folder} holds {len(repeated)} images of an object twice (first: {repeated[0]}); expected each once")
    return DashB(files, records)


def _read_side(path: Path, side: str) -> list[DashQuestion]:
    records = []
    for source, objects in read_json_object(path).items():
        for name, images in objects.items() if isinstance(objects, Mapping) else [("", None)]:
            if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
                raise UserError(f"{path}: {source}/{name} holds no list of image names; expected source -> object -> names")
            prompt = PROMPT.format(name=name)
            records += [
                DashQuestion(f"{side}/{name}/{image}", f"{side}/{source}/{name}/{image}", prompt, source, SIDES[side]) for image in images
            ]
    return records
