r"""How far does a local judge agree with what is known of the answers? MMHal-Bench and Object HalBench, beside judges that never vary.

    python -m scripts.real.judges --mmhal mmhal/ --captions captions.jsonl --objects coco2014_objects.json.gz \
        --synonyms synonyms_refine.txt --judge judge/ --out runs/judges --report docs

The answers are of known worth. Of MMHal-Bench's questions every second one is answered with its own reference (a rating of 6), the others
with the reference of another question of their kind (0). Descriptions are a model's own (JSON lines of image_id and text); what they name
is known by their words, what is there by COCO's objects. The table goes into docs/judges.md. A stopped run resumes: replies are kept.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.evaluation.agreement import judge_one_by_one
from mmalign.evaluation.judges.local import LocalJudge
from mmalign.evaluation.object_halbench import build_own_double_words, find_noun_objects, load_object_halbench
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import read_json, write_whole
from mmalign.options.evaluate import EvaluateOptions
from mmalign.options.judge_agreement import JudgeAgreementOptions
from mmalign.runs.evaluate import load_benchmark
from mmalign.runs.judge_agreement import Comparison, compare_judges
from mmalign.tables import markdown_table
from scripts.studies.page import write_measured
from scripts.studies.study import slug

MMHAL, OBJECTS = "mmhal", "object-halbench"
ANSWERS = "answers.jsonl"
TEMPLATE = "mmhal-bench_answer_template.json"
RIGHT, WRONG = "Rating: 6", "Rating: 0"
CONSTANTS = {
    MMHAL: {"always 6": RIGHT, "always 0": WRONG},
    OBJECTS: {"no objects": "[]", "a person": '["person"]'},
}
DECISIONS = {MMHAL: ("hallucinating", "rating"), OBJECTS: ("description",)}


class Made(NamedTuple):
    """Answers and what is known of them, both by image."""

    answers: dict[str, str]
    known: dict[str, str]


def make_mmhal(source: Path, folder: Path) -> Made:
    """Write MMHal-Bench's template with answers of known worth."""
    rows = read_json(source / TEMPLATE)
    made = Made({}, {})
    for number, row in enumerate(rows):
        kind = [other for other in rows if other["question_type"] == row["question_type"]]
        right = number % 2 == 0
        answered = row if right else kind[(kind.index(row) + 1) % len(kind)]
        made.answers[row["image_id"]] = answered["gt_answer"]
        made.known[row["image_id"]] = RIGHT if right else WRONG
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / TEMPLATE, folder / TEMPLATE)
    write_lines(folder / ANSWERS, made.answers, name="answer")
    return made


def make_objects(options: argparse.Namespace, folder: Path) -> Made:
    """Write descriptions, and the files that say what is there; what a description names is known by its words."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.synonyms, folder / "synonyms_refine.txt")
    shutil.copy(options.objects, folder / f"coco_objects{''.join(options.objects.suffixes)}")
    answers = {str(row["image_id"]): str(row["text"]) for row in read_jsonl(options.captions)[: options.num_captions]}
    write_lines(folder / ANSWERS, answers, name="answer")
    bench = load_object_halbench(folder, answers=folder / ANSWERS)
    words = build_own_double_words(bench.synonyms)
    named = {i: find_noun_objects(text, synonyms=bench.synonyms, double_words=words) for i, text in answers.items()}
    return Made(answers, {i: json.dumps(names) for i, names in named.items()})


def write_lines(path: Path, texts: Mapping[str, str], *, name: str) -> Path:
    """Write a text for each image."""
    write_whole(path, "".join(json.dumps({"image_id": image, name: text}) + "\n" for image, text in texts.items()))
    return path


def compare(name: str, made: Made, options: argparse.Namespace, folder: Path) -> list[list[object]]:
    """Ask the judge what it has not been asked, and compare it and the constant ones with what is known. Returns the table's rows."""
    answers = folder / ANSWERS
    benchmark = load_benchmark(EvaluateOptions(benchmark=name, data=folder, answers=answers))
    prompts = benchmark.judge_prompts(made.answers)
    judge = LocalJudge(options.judge, cache=folder / "judge_cache.jsonl", max_new_tokens=options.length)
    said = {constant: dict.fromkeys(prompts, reply) for constant, reply in CONSTANTS[name].items()}
    said[options.name] = dict(zip(prompts, judge.ask(list(prompts.values())), strict=True))
    known = write_lines(folder / "known.jsonl", {i: made.known[i] for i in prompts}, name="judgement")
    rows: list[list[object]] = []
    for one, replies in said.items():
        path = write_lines(folder / f"{slug(one)}.jsonl", replies, name="judgement")
        read = judge_one_by_one(benchmark, made.answers, replies, mode="strict").values()
        if any(benchmark.decisions[decision].find(item) is not None for decision in DECISIONS[name] for item in read):
            both = JudgeAgreementOptions(benchmark=name, data=folder, answers=answers, judgements=[known, path], names=["known", one])
            rows += rows_of(compare_judges(both)[0])
        else:
            rows += [[name, decision, one, f"0 of {len(prompts)}"] for decision in DECISIONS[name]]
    return rows


def rows_of(comparison: Comparison) -> list[list[object]]:
    """The table's rows: a decision each."""
    rows: list[list[object]] = []
    for decision in DECISIONS[comparison.benchmark]:
        found = comparison.agreements[decision]
        cells = [_cell(found.metrics.get(metric)) for metric in ("accuracy", "kappa", "weighted_kappa")]
        judged = sum(map(sum, found.table))
        rows.append([comparison.benchmark, decision, comparison.judges[1], f"{judged} of {comparison.num_answers}", *cells])
    return rows


def _cell(value: Any) -> str:
    return "" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def main(words: Sequence[str] | None = None) -> None:
    """Make the answers, ask, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmhal", type=Path, required=True, help=f"folder of {TEMPLATE}")
    parser.add_argument("--captions", type=Path, required=True, help="JSON lines of image_id and text: a model's own descriptions")
    parser.add_argument("--objects", type=Path, required=True, help="objects of COCO's images, by data_tools/coco_objects.py")
    parser.add_argument("--synonyms", type=Path, required=True, help="word list: synonyms_refine.txt of RLAIF-V, or CHAIR's")
    parser.add_argument("--judge", type=Path, required=True, help="folder of a language model with a chat template")
    parser.add_argument("--name", default="local judge", help="what the table calls it")
    parser.add_argument("--num-captions", type=int, default=100, help="descriptions that are judged")
    parser.add_argument("--length", type=int, default=128, help="longest reply in tokens")
    parser.add_argument("--out", type=Path, default=Path("runs/judges"), help="folder of answers and replies, kept from call to call")
    parser.add_argument("--report", type=Path, default=Path("docs"), help="folder of judges.md")
    options = parser.parse_args(words)
    made = {MMHAL: make_mmhal(options.mmhal, options.out / MMHAL), OBJECTS: make_objects(options, options.out / OBJECTS)}
    rows = [row for name, one in made.items() for row in compare(name, one, options, options.out / name)]
    header = ["benchmark", "decision", "judge", "read", "accuracy", "kappa", "weighted kappa"]
    write_measured(options.report / "judges.md", "Judges", [markdown_table(header, rows, text=(0, 1, 2))])


if __name__ == "__main__":
    main()
