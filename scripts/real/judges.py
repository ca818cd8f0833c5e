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
from typing import Any

from mmalign.evaluation.object_halbench import build_own_double_words, find_noun_objects, load_object_halbench
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import read_json, write_whole
from mmalign.options.judge_agreement import JudgeAgreementOptions
from mmalign.runs.judge_agreement import Comparison, compare_judges
from mmalign.tables import markdown_table
from scripts.studies.page import write_measured
from scripts.studies.world import run

MMHAL, OBJECTS = "mmhal", "object-halbench"
TEMPLATE = "mmhal-bench_answer_template.json"
RIGHT, WRONG = "Rating: 6", "Rating: 0"
CONSTANTS = {
    MMHAL: {"always 6": RIGHT, "always 0": WRONG},
    OBJECTS: {"no objects": "[]", "a person": '["person"]'},
}
DECISIONS = {MMHAL: ("hallucinating", "rating"), OBJECTS: ("description",)}


def make_mmhal(source: Path, folder: Path) -> dict[str, str]:
    """Write MMHal-Bench's template with answers of known worth. Returns the known judgements by id."""
    rows = read_json(source / TEMPLATE)
    answers, known = [], {}
    for number, row in enumerate(rows):
        kind = [other for other in rows if other["question_type"] == row["question_type"]]
        other = kind[(kind.index(row) + 1) % len(kind)]
        right = number % 2 == 0
        answers.append({**row, "model_answer": (row if right else other)["gt_answer"]})
        known[row["image_id"]] = RIGHT if right else WRONG
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / TEMPLATE, folder / TEMPLATE)
    write_whole(folder / "answers.json", json.dumps(answers))
    return known


def make_objects(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Write descriptions, and the files that say what is there. Returns what each names by its words, as a judge would list it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.synonyms, folder / "synonyms_refine.txt")
    shutil.copy(options.objects, folder / "coco2014_objects.json.gz")
    rows = read_jsonl(options.captions)[: options.num_captions]
    answers = [{"image_id": row["image_id"], "answer": row["text"]} for row in rows]
    write_whole(folder / "answers.json", "".join(json.dumps(row) + "\n" for row in answers))
    bench = load_object_halbench(folder)
    words = build_own_double_words(bench.synonyms)
    return {
        str(row["image_id"]): json.dumps(find_noun_objects(str(row["answer"]), synonyms=bench.synonyms, double_words=words))
        for row in answers
    }


def write_judgements(path: Path, replies: Mapping[str, str], *, key: str) -> Path:
    """Write replies as a file of judgements."""
    write_whole(path, "".join(json.dumps({key: name, "judgement": reply}) + "\n" for name, reply in replies.items()))
    return path


def compare(name: str, known: Mapping[str, str], options: argparse.Namespace, folder: Path) -> list[Comparison]:
    """Ask the judge what it has not been asked, and compare it and the constant ones with what is known."""
    key = "image_id"
    first = write_judgements(folder / "known.jsonl", known, key=key)
    judges = {one: write_judgements(folder / f"{one.replace(' ', '-')}.jsonl", dict.fromkeys(known, said), key=key)
              for one, said in CONSTANTS[name].items()}  # fmt: skip
    run(["evaluate", name, "--data", folder, "--answers", folder / "answers.json", "--judge", options.judge, "--out", folder / "out",
         "--judge-decoding", f"{{max_new_tokens: {options.length}}}"])  # fmt: skip
    judges[options.name] = folder / "out" / "judgements.jsonl"
    return [
        compare_judges(
            JudgeAgreementOptions(
                benchmark=name, data=folder, answers=folder / "answers.json", judgements=[first, file], names=["known", judge]
            )
        )[0]
        for judge, file in judges.items()
    ]


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
    rows = [row for name, known in made.items() for one in compare(name, known, options, options.out / name) for row in rows_of(one)]
    header = ["benchmark", "decision", "judge", "read", "accuracy", "kappa", "weighted kappa"]
    write_measured(options.report / "judges.md", "Judges", [markdown_table(header, rows, text=(0, 1, 2))])


if __name__ == "__main__":
    main()
