"""Answer files, question files and judgements: the forms that ``mmalign evaluate`` reads, and what it refuses."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mmalign.evaluation.answers import Answer, match_answers, read_answers
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.captions import read_object_sets
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.hallusionbench import load_hallusionbench, parse_judgement
from mmalign.evaluation.judging import read_judgements
from mmalign.evaluation.mme import load_mme
from mmalign.evaluation.mmhal import load_mmhal, parse_rating
from mmalign.evaluation.mmvp import load_mmvp
from mmalign.evaluation.object_halbench import load_object_halbench
from mmalign.evaluation.pope import load_pope
from mmalign.evaluation.verdicts import find_rating, find_verdict, parse_list
from tests.formats.form import Form, Section


def _lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _table(*rows: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


_DOG, _CAT = "Is there a dog in the image?", "Is there a cat in the image?"
_POPE = _lines(*({"question_id": i, "image": "1.jpg", "text": text, "label": a} for i, text, a in ((1, _DOG, "yes"), (2, _CAT, "no"))))
_CUP = _lines({"question_id": 1, "image": "1.jpg", "text": "Is there a cup in the image?", "label": "yes"})
_MME = _lines(
    *({"question_id": "existence/1.jpg", "category": "existence", "question": q, "answer": a} for q, a in ((_DOG, "Yes"), (_CAT, "No")))
)
_OPEN, _MMVP_HEAD = "Is it open or closed?", "Index,Question,Options,Correct Answer\n"
_MMVP = f"{_MMVP_HEAD}1,{_OPEN},(a) Open (b) Closed,(a)\n2,{_OPEN},(a) Open (b) Closed,(b)\n"
_HALLUSION = _lines(
    {
        "category": "VS",
        "subcategory": "chart",
        "set_id": "0",
        "figure_id": "1",
        "question_id": "0",
        "visual_input": "1",
        "filename": "./VS/chart/0_1.png",
        "question": "Is China first?",
        "gt_answer": "0",
        "gt_answer_details": "It is not.",
    }
)
_MMHAL = _lines(
    {
        "question_type": "other",
        "image_id": "a1",
        "image_content": ["Dog"],
        "question": "What is it?",
        "gt_answer": "A dog.",
        "image_src": "",
    }
)
_POPE_FILES = {"data/coco_pope_random.json": _POPE}
_CHAIR_FILES = {"data/synonyms.txt": b"dog, puppy\ncat\n", "data/objects.json": b'{"7": ["dog"], "12": ["cat"]}'}
_HALBENCH_FILES = {"data/synonyms_refine.txt": b"dog, puppy\n", "data/objects.json": b'{"7": ["dog"]}'}


def _answers(load: Callable[[Path], Benchmark]) -> Callable[[Path], dict[str, str]]:
    """Read a file of answers to the benchmark whose files lie in ``data``."""

    def read(path: Path) -> dict[str, str]:
        benchmark = load(path.parent / "data")
        rows = read_answers(path, benchmark.form, order=benchmark.required(), texts=benchmark.texts(), parts=benchmark.parts())
        return match_answers(rows, required=benchmark.required(), known=benchmark.known())

    return read


def _endings(path: Path) -> list[Answer]:
    return read_answers(path)


def _questions(load: Callable[[Path], Benchmark]) -> Callable[[Path], list[tuple[str, str | None, str]]]:
    """Read a question file: id, image, question."""
    return lambda path: [(question.id, question.image, question.prompt) for question in load(path).questions()]


def _release(path: Path) -> list[tuple[str, str | None, str]]:
    return [(question.id, question.image, question.prompt) for question in load_mme(path.parent.parent).questions()]


def _judgements(load: Callable[[Path], Benchmark]) -> Callable[[Path], dict[str, str]]:
    """Read saved replies of a judge on every answer to the benchmark in ``data``."""

    def read(path: Path) -> dict[str, str]:
        benchmark = load(path.parent / "data")
        asked = benchmark.required() or ["7"]
        return read_judgements(path, benchmark.judgement_form, asked=asked, order=asked).texts

    return read


def _verdicts(path: Path) -> list[bool | None]:
    return [find_verdict(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _ratings(path: Path) -> list[int | None]:
    return [find_rating(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _official(path: Path) -> list[int | None]:
    verdict, rating = path.read_text(encoding="utf-8").splitlines()
    return [parse_judgement(verdict, mode="official"), parse_rating(rating, mode="official")]


_BOTH = {"random/1": "Yes", "random/2": "No"}
_IN_POPE = [("random/1", "1.jpg", _DOG), ("random/2", "1.jpg", _CAT)]

ANSWERS = Section(
    title="Answers",
    text=(
        "`mmalign evaluate NAME --answers FILE` reads JSON lines, a JSON array, one JSON object, or a table: Parquet, CSV, TSV, XLSX. "
        "Ids decide which question a row answers; a row that repeats its question is held to it."
    ),
    forms=(
        Form(
            title="Ours",
            file="answers.jsonl",
            text='{"id": "random/1", "response": "Yes"}\n{"id": "random/2", "response": "No"}\n',
            read=_answers(load_pope),
            expected=_BOTH,
            beside=_POPE_FILES,
            note="What `mmalign evaluate --model` saves; it adds image, prompt, and `ended`.",
        ),
        Form(
            title="One object",
            file="answers.json",
            text='{\n "random/1": "Yes",\n "random/2": "No"\n}\n',
            read=_answers(load_pope),
            expected=_BOTH,
            beside=_POPE_FILES,
        ),
        Form(
            title="LLaVA's rows",
            file="answers.jsonl",
            text=(
                f'{{"question_id": 1, "prompt": "{_DOG}\\nAnswer with one word.", "text": "Yes", "model_id": "m"}}\n'
                f'{{"question_id": 2, "prompt": "{_CAT}\\nAnswer with one word.", "text": "No", "model_id": "m"}}\n'
            ),
            read=_answers(load_pope),
            expected=_BOTH,
            beside=_POPE_FILES,
            note="Of every benchmark; where question_id only counts, rows are known by the run of questions that they repeat.",
        ),
        Form(
            title="LLaVA's one file of all splits of POPE",
            file="answers.jsonl",
            text=(
                f'{{"question_id": 1, "prompt": "{_DOG}", "text": "Yes"}}\n{{"question_id": 2, "prompt": "{_CAT}", "text": "No"}}\n'
                '{"question_id": 3, "prompt": "Is there a cup in the image?", "text": "Yes"}\n'
            ),
            read=_answers(load_pope),
            expected={"adversarial/1": "Yes", **_BOTH},
            beside={**_POPE_FILES, "data/coco_pope_adversarial.json": _CUP},
            note="Ids count over the splits: the run of a split's questions tells which rows are its own.",
        ),
        Form(
            title="POPE's own rows",
            file="answers.json",
            text=f'{{"question": "{_DOG}", "answer": "Yes"}}\n{{"question": "{_CAT}", "answer": "No"}}\n',
            read=_answers(load_pope),
            expected=_BOTH,
            beside=_POPE_FILES,
            note="Rows without ids stand in the questions' order, one for each.",
        ),
        Form(
            title="VLMEvalKit's tables",
            file="MODEL_POPE.tsv",
            text=f"index\tquestion\tanswer\tcategory\tprediction\n1\t{_DOG}\tYes\trandom\tYes\n2\t{_CAT}\tNo\trandom\tNo\n",
            read=_answers(load_pope),
            expected=_BOTH,
            beside=_POPE_FILES,
            note=(
                "Also as XLSX (the first sheet). `prediction`, `pred`, `output` and other fields of a model's words come before `answer` "
                "and `text`, which may hold the label and the question."
            ),
        ),
        Form(
            title="lmms-eval's samples",
            file="samples_pope.jsonl",
            text=(
                f'{{"doc_id": 0, "input": "{_DOG}\\nAnswer with one word.", "target": "yes", "filtered_resps": ["Yes"]}}\n'
                f'{{"doc_id": 1, "input": "{_CAT}\\nAnswer with one word.", "target": "no", "filtered_resps": ["No"]}}\n'
            ),
            read=_answers(load_pope),
            expected=_BOTH,
            beside=_POPE_FILES,
            note="Numbers count over the task: each split, and each category of MME, is found as the run of its questions.",
        ),
        Form(
            title="With reasoning",
            file="answers.jsonl",
            text=(
                '{"id": "a", "response": "<think>\\nNo cat, but a dog.\\n</think>\\n\\nYes", "ended": true}\n'
                '{"id": "b", "response": "<think>\\nThere may be a", "finish_reason": "length"}\n'
                '{"id": "c", "response": "No", "reasoning_content": "There is no cat."}\n'
            ),
            read=_endings,
            expected=[
                Answer("a", "Yes", reasoned=True, at_limit=False),
                Answer("b", "", reasoned=True, at_limit=True),
                Answer("c", "No", reasoned=True),
            ],
            note="The answer stands behind the last closing mark; one that ended inside is none. Results count both.",
        ),
        Form(
            title="Output of a batch",
            file="output.jsonl",
            text=(
                '{"custom_id": "random/1", "response": {"body": {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]}}}\n'
                '{"custom_id": "random/2", "response": {"body": {"choices": [{"message": {"content": "No"}, "finish_reason": "stop"}]}}}\n'
            ),
            read=_answers(load_pope),
            expected=_BOTH,
            beside=_POPE_FILES,
            note="Of OpenAI's batch interface and vLLM's run-batch.",
        ),
        Form(
            title="MME's result files",
            file="existence.txt",
            text=f"1.jpg\t{_DOG} Please answer yes or no.\tYes\tYes\n1.jpg\t{_CAT} Please answer yes or no.\tNo\tNo.\n",
            read=_answers(load_mme),
            expected={"existence/1.jpg/1": "Yes", "existence/1.jpg/2": "No."},
            beside={"data/mme.jsonl": _MME},
            note="Image, question, truth and response with tabs between them; a file a category, or their folder.",
        ),
        Form(
            title="MMVP's answers",
            file="answer.jsonl",
            text=(
                f'{{"question_id": 1, "prompt": "{_OPEN} (a) Open (b) Closed", "answer": "(a)", "response": "(a) Open"}}\n'
                f'{{"question_id": 2, "prompt": "{_OPEN} (a) Open (b) Closed", "answer": "(b)", "response": "It is closed."}}\n'
            ),
            read=_answers(load_mmvp),
            expected={"1": "(a) Open", "2": "It is closed."},
            beside={"data/Questions.csv": _MMVP.encode()},
            note="There `answer` is what would be right.",
        ),
        Form(
            title="HallusionBench's records",
            file="answers.json",
            text=(
                '[{"category": "VS", "subcategory": "chart", "set_id": "0", "figure_id": "1", "question_id": "0",\n'
                '  "question": "Is China first?", "model_prediction": "No."}]\n'
            ),
            read=_answers(load_hallusionbench),
            expected={"VS_chart_0_1_0": "No."},
            beside={"data/HallusionBench.json": _HALLUSION},
        ),
        Form(
            title="MMHal's template, filled in",
            file="answers.json",
            text='[{"image_id": "a1", "question": "What is it?", "gt_answer": "A dog.", "model_answer": "A puppy."}]\n',
            read=_answers(load_mmhal),
            expected={"a1": "A puppy."},
            beside={"data/mmhal-bench_answer_template.json": _MMHAL},
        ),
        Form(
            title="Captions by image",
            file="captions.jsonl",
            text=(
                '{"image_id": 7, "caption": "A dog."}\n'
                '{"question_id": 2, "image": "val2014/COCO_val2014_000000000012.jpg", "text": "A puppy."}\n'
            ),
            read=_answers(load_chair),
            expected={"7": "A dog.", "12": "A puppy."},
            beside=_CHAIR_FILES,
            note="For CHAIR and Object HalBench: a number, a file name or a path, under image_id, id, image, image_path or file_name.",
        ),
        Form(
            title="One object of captions",
            file="captions.json",
            text='{"COCO_val2014_000000000007.jpg": "A dog.", "COCO_val2014_000000000012.jpg": "A puppy."}\n',
            read=_answers(load_chair),
            expected={"7": "A dog.", "12": "A puppy."},
            beside=_CHAIR_FILES,
        ),
        Form(
            title="CHAIR's caption file",
            file="captions.json",
            text='{"overall": {"CIDEr": 1.0},\n "imgToEval": {"7": {"image_id": 7, "caption": "A dog.", "CIDEr": 1.0}}}\n',
            read=_answers(load_chair),
            expected={"7": "A dog."},
            beside=_CHAIR_FILES,
        ),
        Form(
            title="Answers to another split",
            file="answers.jsonl",
            text='{"question_id": 1, "prompt": "Is there a leash in the image?", "text": "Yes"}\n{"question_id": 2, "text": "No"}\n',
            read=_answers(load_pope),
            refused="row 1 answers 'Is there a leash in the image?', but question random/1 is 'Is there a dog in the image?'",
            beside=_POPE_FILES,
        ),
        Form(
            title="An answer that is missing, or stands twice",
            file="answers.jsonl",
            text='{"id": "random/1", "response": "Yes"}\n{"id": "random/1", "response": "No"}\n',
            read=_answers(load_pope),
            refused="1 questions have no answer: random/2; 1 ids are answered more than once: random/1",
            beside=_POPE_FILES,
            note="`--allow-partial` scores what is there.",
        ),
        Form(
            title="Questions in place of answers",
            file="answers.jsonl",
            text=_POPE.decode(),
            read=_answers(load_pope),
            refused="row 1 is a question: its text is the benchmark's own; expected what the model said in response",
            beside=_POPE_FILES,
        ),
        Form(
            title="A response that is no text",
            file="answers.jsonl",
            text='{"id": "random/1", "response": null}\n{"id": "random/2", "response": "No"}\n',
            read=_answers(load_pope),
            refused='row 1: response is null; expected text, and "" where nothing was said',
            beside=_POPE_FILES,
        ),
        Form(
            title="An id that may mean several images",
            file="captions.jsonl",
            text='{"image_id": "0007.jpg", "caption": "A dog."}\n',
            read=_answers(load_chair),
            refused="image '0007.jpg' may be any of 07.jpg, 7.jpg; write the id as the object sets do",
            beside={"data/synonyms.txt": b"dog\n", "data/objects.json": b'{"07.jpg": ["dog"], "7.jpg": []}'},
        ),
    ),
)

QUESTIONS = Section(
    title="Question files",
    text="`--data` takes a benchmark's own files, alone or in their folder; answers and results may lie in the same folder.",
    forms=(
        Form(
            title="POPE as released",
            file="coco_pope_random.json",
            text=_POPE.decode(),
            read=_questions(load_pope),
            expected=_IN_POPE,
            note="JSON lines or an array; the file's name holds the split.",
        ),
        Form(
            title="POPE of the hub",
            file="pope.jsonl",
            text=(
                f'{{"question_id": "1", "question": "{_DOG}", "answer": "yes", "image_source": "1", "category": "random"}}\n'
                f'{{"question_id": "2", "question": "{_CAT}", "answer": "no", "image_source": "1", "category": "random"}}\n'
            ),
            read=_questions(load_pope),
            expected=_IN_POPE,
            note="As Parquet (`test-*.parquet`, also in `data/`) with the images in its column `image`.",
        ),
        Form(
            title="MME's rows",
            file="mme.jsonl",
            text=_MME.decode(),
            read=_questions(load_mme),
            expected=[("existence/1.jpg/1", "existence/1.jpg", _DOG), ("existence/1.jpg/2", "existence/1.jpg", _CAT)],
            note="Also as an array and as Parquet, with the images where it holds them.",
        ),
        Form(
            title="MME's release",
            file="data/existence/1.txt",
            text=f"{_DOG} Please answer yes or no.\tYes\n{_CAT} Please answer yes or no.\tNo\n",
            read=_release,
            expected=[
                (f"existence/1.png/{place}", "existence/1.png", f"{question} Please answer yes or no.")
                for place, question in ((1, _DOG), (2, _CAT))
            ],
            beside={"data/existence/1.png": b""},
            note="`--data` is the folder of the categories; images lie beside the questions, or in `images/` and `questions_answers_YN/`.",
        ),
        Form(
            title="MMVP's questions",
            file="Questions.csv",
            text=_MMVP,
            read=_questions(load_mmvp),
            expected=[(f"{i}", f"{i}.jpg", f"{_OPEN} (a) Open (b) Closed") for i in (1, 2)],
            note="Images lie in `MMVP Images/` beside it. Also as Parquet with these columns, and the images where it holds them.",
        ),
        Form(
            title="Contrast images",
            file="questions.jsonl",
            text=(
                '{"id": "7-own", "image": "7-own.png", "pair": "7", "question": "Which colour?", "options": ["Red", "Blue"], '
                '"answer": "Red", "kind": "recoloured"}\n'
                '{"id": "7-other", "image": "7-other.png", "pair": "7", "question": "Which colour?", "options": ["Red", "Blue"], '
                '"answer": "Blue", "kind": "recoloured"}\n'
            ),
            read=_questions(load_mmvp),
            expected=[(f"7-{side}", f"7-{side}.png", "Which colour?") for side in ("own", "other")],
            note="For `mmalign evaluate mmvp`: two images a pair, one question, two answers. `kind` may be left out.",
        ),
        Form(
            title="Objects of images",
            file="objects.json",
            text='{"7": ["dog", "traffic cone"], "street 1.png": []}\n',
            read=read_object_sets,
            expected={"7": frozenset({"dog", "traffic cone"}), "street 1.png": frozenset()},
            note="For CHAIR and Object HalBench, gzipped or not, beside `synonyms.txt` (a line an object: name, synonyms).",
        ),
        Form(
            title="An image that stands twice",
            file="objects.json",
            text='{"7": ["dog"],\n "7": ["cat"]}\n',
            read=read_object_sets,
            refused="holds no object sets ('7' stands there twice)",
        ),
        Form(
            title="A Git LFS pointer",
            file="coco_pope_random.json",
            text="version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 62914560\n",
            read=_questions(load_pope),
            refused="is a Git LFS pointer, not the file itself: run 'git lfs pull'",
            note="Named wherever a file is read: questions, answers, judgements, object sets, Parquet.",
        ),
        Form(
            title="A label that is neither yes nor no",
            file="coco_pope_random.json",
            text=f'{{"question_id": 1, "image": "1.jpg", "text": "{_DOG}", "label": "maybe"}}\n',
            read=_questions(load_pope),
            refused="label of question 1 is 'maybe'; expected yes or no",
        ),
    ),
)

JUDGEMENTS = Section(
    title="Judgements",
    text="`--judgements FILE` reads a judge's saved replies; what stands behind their reasoning is read, in every benchmark.",
    forms=(
        Form(
            title="Ours",
            file="judgements.jsonl",
            text='{"id": "a1", "judgement": "<think>Rating: 3? No.</think>\\nIt agrees.\\n**Rating:** 5/6"}\n',
            read=_judgements(load_mmhal),
            expected={"a1": "It agrees.\n**Rating:** 5/6"},
            beside={"data/mmhal-bench_answer_template.json": _MMHAL},
        ),
        Form(
            title="Responses of an endpoint",
            file="responses.json",
            text='[{"id": "chatcmpl-1", "choices": [{"message": {"content": "Rating: 4"}, "finish_reason": "stop"}]}]\n',
            read=_judgements(load_mmhal),
            expected={"a1": "Rating: 4"},
            beside={"data/mmhal-bench_answer_template.json": _MMHAL},
            note="In the questions' order; a batch's output goes by `custom_id`.",
        ),
        Form(
            title="Answers merged with their judgements",
            file="merged.jsonl",
            text='{"image_id": "a1", "model_answer": "Yes, two.", "gpt4_review": "Rating: 4"}\n',
            read=_judgements(load_mmhal),
            expected={"a1": "Rating: 4"},
            beside={"data/mmhal-bench_answer_template.json": _MMHAL},
            note="RLAIF-V's `merge_mmhal_review_with_predict.py` writes them.",
        ),
        Form(
            title="Codes of HallusionBench's script",
            file="judged.json",
            text=(
                '[{"category": "VS", "subcategory": "chart", "set_id": "0", "figure_id": "1", "question_id": "0",\n'
                '  "gpt4v_output_gpt_check": "1"}]\n'
            ),
            read=_judgements(load_hallusionbench),
            expected={"VS_chart_0_1_0": "correct"},
            beside={"data/HallusionBench.json": _HALLUSION},
        ),
        Form(
            title="Lists that were parsed",
            file="objects.jsonl",
            text='{"image_id": 7, "extract_objs": ["dog", "traffic cone"]}\n',
            read=_judgements(load_object_halbench),
            expected={"7": '["dog", "traffic cone"]'},
            beside=_HALBENCH_FILES,
        ),
        Form(
            title="Verdicts, strict",
            file="verdicts.txt",
            text=(
                "The prediction is not correct.\nIt is worded otherwise, but not incorrect.\n"
                'Incorrect. The correct answer is no.\n{"verdict": "correct"}\nI can\'t tell whether it is correct.\n'
            ),
            read=_verdicts,
            expected=[False, True, False, True, None],
            note="Each line is a reply: incorrect, correct, incorrect, correct, unclear.",
        ),
        Form(
            title="Ratings, strict",
            file="ratings.txt",
            text='Rating: 5/6\n**Rating:** 5\n{"rating": 4}\nRating: 2 would be too low. Rating: 5\nRating: 10\n',
            read=_ratings,
            expected=[5, 5, 4, 5, None],
            note="Each line is a reply; the last can't be read.",
        ),
        Form(
            title="Both, official",
            file="replies.txt",
            text="The prediction is not correct.\nRating: 10\n",
            read=_official,
            expected=[1, 1],
            note="As the original scripts read them: correct, and a rating of 1.",
        ),
        Form(
            title="Lists of objects",
            file="reply.txt",
            text='The objects are:\n```python\n[\n  "dog", "traffic cone",\n]\n```\n',
            read=lambda path: parse_list(path.read_text(encoding="utf-8")),
            expected=["dog", "traffic cone"],
            note="JSON, fenced or not, with words around it; bullets and numbers too.",
        ),
        Form(
            title="An answer without its judgement",
            file="judgements.jsonl",
            text='{"id": "b2", "judgement": "Rating: 4"}\n',
            read=_judgements(load_mmhal),
            refused="has no judgement of 1 of 1 answers (first: a1); judge them too",
            beside={"data/mmhal-bench_answer_template.json": _MMHAL},
        ),
    ),
)

SECTIONS: tuple[Section, ...] = (ANSWERS, QUESTIONS, JUDGEMENTS)
