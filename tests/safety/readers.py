"""Every reader of files from elsewhere, as a table: a sound sample, and what reads it as its command does."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from data_tools import records
from mmalign.config import parse_options
from mmalign.data.checking import keep_good_rows
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from mmalign.data.rejects import Rejects
from mmalign.data.rows import CHAT_COLUMNS, LIST_COLUMNS, PAIR_COLUMNS, check_columns, read_chat, read_list, read_pair
from mmalign.errors import UserError
from mmalign.evaluation.judges.cache import JudgementCache
from mmalign.evaluation.runner import resume_answers
from mmalign.evaluation.word_similarity import read_table
from mmalign.files import hash_file
from mmalign.models.load import load_config
from mmalign.options.difficulty import FuseOptions
from mmalign.options.evaluate import EvaluateOptions
from mmalign.options.methods import PreferenceOptions
from mmalign.options.report import ReportEvalOptions
from mmalign.options.world import WorldOptions
from mmalign.runs.answering import evaluate
from mmalign.runs.cards import write_card
from mmalign.runs.difficulty import run_fuse
from mmalign.runs.eval_report import run as run_eval
from mmalign.runs.evaluate import load_benchmark
from mmalign.runs.world import run as run_world
from mmalign.training.checkpoints import find_checkpoint, write_manifest
from mmalign.worlds.photos import load_photos
from tests.commands.test_report import write_results
from tests.evaluation.test_hallusionbench import RECORDS
from tests.tiny_models import CLIP_TOWER, QWEN3, build_tokenizer, random_image


class Reader(NamedTuple):
    """One reader of files.

    Attributes:
        write: Writes a sound sample into a folder and returns the files that are damaged, by turns.
        read: Reads it.
        refuses: Whether damage is refused; else it costs itself alone.
        harmless: Damage that this reader can read.
        unnamed: Whether the refusal names something else than the file.
    """

    write: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    refuses: bool = True
    harmless: tuple[str, ...] = ()
    unnamed: bool = False


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def whole(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


PAIRS = [
    {"id": f"p{i}", "prompt": [message("user", f"what {i}")], "chosen": [message("assistant", "a dog")], "rejected": "a cat", "source": "s"}
    for i in range(4)
]
LISTS = [{"prompt": "what", "responses": ["a dog", "a cat"], "scores": [0.5, 0.1]} for _ in range(3)]
CHATS = [{"images": ["a.png"], "messages": [message("user", "what"), message("assistant", "a dog")]} for _ in range(3)]


def write_rows(name: str, rows: list[Any]) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        random_image(0).save(folder / "a.png")
        return [lines(folder / name, rows)]

    return write


def read_rows(name: str, read: Callable[..., Any], columns: tuple[str, ...]) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        dataset = load_rows(folder / name)
        check_columns(dataset.column_names, columns, what=name)
        rejects = Rejects(folder / "rejects.jsonl", max_share=1.0)
        return keep_good_rows(dataset, lambda row, index: read(row, index=index, image_root=folder), rejects=rejects)

    return run


def write_parquet(folder: Path) -> list[Path]:
    picture = io.BytesIO()
    random_image(0).save(picture, format="PNG")
    rows = [{**row, "rejected": [message("assistant", "a cat")], "images": [{"bytes": picture.getvalue(), "path": None}]} for row in PAIRS]
    Dataset.from_list(rows).to_parquet(str(folder / "pairs.parquet"))
    return [folder / "pairs.parquet"]


def write_pope(folder: Path) -> list[Path]:
    rows = [{"question_id": i, "image": f"{i}.png", "text": f"Is there {i}?", "label": "yes" if i % 2 else "no"} for i in range(3)]
    answers = [{"question_id": i, "question": f"Is there {i}?", "answer": "Yes"} for i in range(3)]
    return [lines(folder / "coco_pope_random.json", rows), lines(folder / "answers.jsonl", answers)]


def write_repope(folder: Path) -> list[Path]:
    pope, answers = write_pope(folder)
    rows = [json.loads(line) for line in pope.read_text().splitlines()]
    return [lines(folder / "coco_repope_random.json", [{**row, "label": "no"} for row in rows[1:]]), pope, answers]


def write_chair(folder: Path) -> list[Path]:
    rows = [{"id": i, "image": f"{i}.png", "question": "Describe it.", "truth": ["dog"]} for i in ("a", "b")]
    (folder / "synonyms.txt").write_text("dog, puppy\ncat, kitten\n")
    answers = [{"id": i, "response": "a puppy and a cat"} for i in ("a", "b")]
    return [lines(folder / "chair.jsonl", rows), lines(folder / "answers.jsonl", answers), folder / "synonyms.txt"]


def write_mme(folder: Path) -> list[Path]:
    rows = [
        {
            "question_id": f"existence/{i}.png",
            "category": "existence",
            "question": f"Is it {k}?",
            "answer": ("Yes", "No")[k],
            "image": f"{i}.png",
        }
        for i in range(2)
        for k in range(2)
    ]
    answers = [{"question_id": row["question_id"], "question": row["question"], "answer": "Yes"} for row in rows]
    return [whole(folder / "mme.json", rows), lines(folder / "answers.jsonl", answers)]


def write_dash_b(folder: Path) -> list[Path]:
    lists = [whole(folder / f"dash_benchmark_{side}.json", {"coco": {"bed": ["1.png", "2.png"]}}) for side in ("neg", "pos")]
    answers = [
        {"img_id": f"{i}.png", "object_name": "bed", "gt": gt, "response": "yes", "answer": "yes"} for gt in ("no", "yes") for i in (1, 2)
    ]
    return [*lists, whole(folder / "answers.json", answers)]


def write_haloquest(folder: Path) -> list[Path]:
    rows = "".join(f"{i},{i}.png,generated,false premises,What is it?,There is nothing of the kind,eval\n" for i in range(4))
    (folder / "haloquest-eval.csv").write_text(f",image_name,image type,hallucination type,question,groundtruth responses,split\n{rows}")
    answers = [{"id": str(i), "response": "red"} for i in range(4)]
    judged = [{"id": str(i), "judgement": "incorrect"} for i in range(4)]
    return [folder / "haloquest-eval.csv", lines(folder / "answers.jsonl", answers), lines(folder / "judged.jsonl", judged)]


def write_mmvp(folder: Path) -> list[Path]:
    rows = "".join(f"{i},Is it?,(a) Yes (b) No,({answer})\n" for i, answer in enumerate("abab", start=1))
    (folder / "Questions.csv").write_text(f"Index,Question,Options,Correct Answer\n{rows}")
    answers = [{"question_id": i, "prompt": "Is it? (a) Yes (b) No", "response": "(a)"} for i in range(1, 5)]
    return [folder / "Questions.csv", lines(folder / "answers.jsonl", answers)]


def write_contrast(folder: Path) -> list[Path]:
    options = ["Yes", "No"]
    shared = [{"image": f"{i}.png", "pair": str(i // 2), "question": "Is it?", "options": options} for i in range(4)]
    rows = [{"id": str(i), **row, "answer": options[i % 2]} for i, row in enumerate(shared)]
    answers = [{"id": row["id"], "response": "Yes."} for row in rows]
    return [lines(folder / "questions.jsonl", rows), lines(folder / "answers.jsonl", answers)]


def write_hallusion(folder: Path) -> list[Path]:
    answers = [{**row, "model_prediction": "Yes", "model_correctness": "1"} for row in RECORDS]
    data = whole(folder / "HallusionBench.json", RECORDS)
    return [data, whole(folder / "answers.json", answers)]


def write_judged_hallusion(folder: Path) -> list[Path]:
    files = write_hallusion(folder)
    return [*files, whole(folder / "judged.json", json.loads(files[1].read_text()))]


def write_amber(folder: Path) -> list[Path]:
    rows: list[dict[str, Any]] = [{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]}]
    rows += [{"id": i, "type": "discriminative-hallucination", "truth": "yes" if i % 2 else "no"} for i in (2, 3)]
    asked = [{"id": row["id"], "image": f"{row['id']}.jpg", "query": "Is it?"} for row in rows]
    (folder / "safe_words.txt").write_text("light\n")
    files = [whole(folder / "annotations.json", rows), whole(folder / "query_all.json", asked)]
    files.append(whole(folder / "relation.json", {"dog": ["puppy"], "cat": []}))
    files.append(whole(folder / "table.json", [["dog", "hound", 0.9]]))
    return [*files, lines(folder / "answers.jsonl", [{"id": i, "response": "Yes"} for i in (2, 3)])]


def write_mmhal(folder: Path) -> list[Path]:
    rows = [
        {"question_type": "other", "image_content": ["Dog"], "question": "What?", "gt_answer": "A dog.", "image_src": f"http://x/{i}.jpg"}
        for i in range(2)
    ]
    judged = [{"choices": [{"message": {"content": "Rating: 4"}}]} for _ in range(2)]
    answers = [{**row, "model_answer": "A dog."} for row in rows]
    return [whole(folder / "mmhal.json", rows), whole(folder / "answers.json", answers), whole(folder / "judged.json", judged)]


def write_halbench(folder: Path) -> list[Path]:
    (folder / "synonyms_refine.txt").write_text("dog, puppy\n")
    rows = [{"image_id": f"{i}", "question": "Describe.", "image": "aGVsbG8="} for i in (7, 8)]
    return [lines(folder / "obj_halbench.jsonl", rows), whole(folder / "coco_objects.json", {"7": ["dog"], "8": []})]


def read_halbench(folder: Path) -> Any:
    benchmark = load_benchmark(EvaluateOptions(benchmark="object-halbench", data=folder))
    benchmark.write_images(folder / "out" / "images")
    assert {path.name for path in folder.iterdir()} <= {*(path.name for path in SAMPLE_FILES), "out"}
    return benchmark.judge_prompts({"7": "a dog and a cat and a car"})


SAMPLE_FILES = [Path(name) for name in ("synonyms_refine.txt", "obj_halbench.jsonl", "coco_objects.json")]


def read_evaluation(benchmark: Any, answers: str, **more: str) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        options = {key: str(folder / value) if "." in value else value for key, value in more.items()}
        paths = {"data": folder, "answers": folder / answers, "out": folder / "out"}
        if "judgements" in options:
            options["judgements"] = Path(options["judgements"])  # type: ignore[assignment]
        result = evaluate(EvaluateOptions(benchmark=benchmark, **paths, **options))  # type: ignore[arg-type]
        return result.to_json(), result.to_text()

    return run


def write_report(folder: Path) -> list[Path]:
    write_results(folder / "a", share=0.6)
    write_results(folder / "b", share=0.9, seed=1)
    return [folder / "a" / "pope.json", folder / "a" / "pope_items.jsonl", folder / "b" / "pope_items.jsonl"]


def read_report(folder: Path) -> Any:
    return run_eval(
        ReportEvalOptions(results=[folder / "a", folder / "b"], out=folder / "out", images=[folder], resamples=100, max_wrong=3)
    )


def write_judge_cache(folder: Path) -> list[Path]:
    cache = JudgementCache(folder / "cache.jsonl", judge={"model": "m"})
    for prompt in ("a", "b", "c"):
        cache.add(prompt, "Rating: 3", cut=False)
    return [folder / "cache.jsonl"]


def read_judge_cache(folder: Path) -> Any:
    cache = JudgementCache(folder / "cache.jsonl", judge={"model": "m"})
    return [cache[prompt].lower() for prompt in "abc" if prompt in cache]


def write_config(folder: Path) -> list[Path]:
    values = {"model": "m", "data": "d", "out": "o", "objective": ["dpo"], "learning-rate": 1e-4, "trainer": {"seed": 1}, "freeze": []}
    (folder / "config.yaml").write_text(
        yaml.safe_dump(values) + "lora_rank: 4\ndtype: auto\neval_data: [a, b]\ngradient_checkpointing: true\n"
    )
    return [folder / "config.yaml"]


def read_config_file(folder: Path) -> Any:
    try:
        return parse_options(PreferenceOptions, ["--config", str(folder / "config.yaml")], prog="mmalign", description="")
    except SystemExit as error:
        if error.code != 2:
            raise
        raise UserError("the command line's own refusal, which it printed") from error


def write_scores(folder: Path) -> list[Path]:
    data = lines(folder / "pairs.jsonl", [{"id": f"p{i}", "prompt": "q", "chosen": "a", "rejected": "b"} for i in range(3)])
    out = folder / "scored"
    (out / "shards").mkdir(parents=True)
    row = {
        "reference_logps_chosen": -1.0,
        "reference_logps_rejected": -2.0,
        "reference_text": "t",
        "reference_images": "i",
        "source": "all",
    }
    row |= {"reference_token_logps_chosen": [-1.0], "reference_token_logps_rejected": [-2.0]}
    rows = [{**row, "index": i, "id": f"p{i}", "gap_contrastive": 0.1 * i, "gap_generative": 1.0 - i} for i in range(3)]
    record = {"data": {data.name: hash_file(data)}, "reference": "weights x"}
    return [whole(out / "scoring.json", record), lines(out / "shards" / "000000000.jsonl", rows)]


def write_run(folder: Path) -> list[Path]:
    record = {
        "method": "sft",
        "options": {"model": str(folder), "data": "d", "license": None, "lora_rank": 0},
        "data": {"a.parquet": "0" * 64},
        "mmalign": "0",
        "commit": None,
        "parameters": {"total": 10, "trainable": 5, "activated": 10},
        "steps": 3,
        "batch": 2,
        "num_rows": 5,
        "num_rejected": 1,
    }
    whole(folder / "config.json", CLIP_TOWER)
    return [whole(folder / "mmalign_run.json", record)]


def write_world(folder: Path) -> list[Path]:
    (folder / "world").mkdir()
    values = dataclasses.asdict(WorldOptions(out=folder, num_scenes=4))
    kept = {key: value for key, value in values.items() if key not in ("out", "num_workers", "num_contrast", "num_drawings")}
    return [whole(folder / "world" / "world.json", {"config": kept, "counts": {"sft": 4}})]


def write_checkpoint(folder: Path) -> list[Path]:
    for step in (1, 2):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(bytes(range(100)))
        write_manifest(checkpoint)
    return [folder / "checkpoint-2" / "manifest.json"]


def read_checkpoint(folder: Path) -> Any:
    found, _ = find_checkpoint(folder)
    assert found is not None, "the older checkpoint is sound"
    return found


def write_model_configs(folder: Path) -> list[Path]:
    build_tokenizer().save_pretrained(folder / "tokenizer")
    return [whole(folder / "vision.json", CLIP_TOWER), whole(folder / "llm.json", {**QWEN3, "hidden_size": 32, "num_hidden_layers": 1})]


def read_model_configs(folder: Path) -> Any:
    # Sizes that are merely huge are the user's to choose: what is damaged is told apart from them.
    for path in (folder / "vision.json", folder / "llm.json"):
        with_config = folder / "model" / "config.json"
        with_config.parent.mkdir(exist_ok=True)
        with_config.write_bytes(path.read_bytes())
        load_config(str(with_config.parent))


def write_images(kind: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        random_image(3, (20, 30)).save(folder / "image.png", format=kind)
        return [folder / "image.png"]

    return write


def read_image(folder: Path) -> Any:
    image = load_image("image.png", root=folder)
    assert image.mode == "RGB"
    return image.tobytes()


def write_photos(folder: Path) -> list[Path]:
    names = ["dog", "cat", "car", "bus"]
    pictures = [Image.new("RGB", (4, 4), (i, i, i)) for i in range(24)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    Dataset.from_dict({"image": pictures, "label": [i % 4 for i in range(24)]}, features=features).to_parquet(
        str(folder / "photos.parquet")
    )
    return [folder / "photos.parquet"]


def write_unfinished(folder: Path) -> list[Path]:
    rows = [{"id": f"q{i}", "image": "a.png", "prompt": "?", "response": "y"} for i in range(3)]
    return [lines(folder / "pope_answers.jsonl.partial", [{"source": "m"}, *rows])]


PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
READERS = {
    "pairs jsonl": Reader(write_rows("rows.jsonl", PAIRS), read_rows("rows.jsonl", read_pair, PAIR_COLUMNS)),
    "lists jsonl": Reader(write_rows("rows.jsonl", LISTS), read_rows("rows.jsonl", read_list, LIST_COLUMNS)),
    "chats jsonl": Reader(write_rows("rows.jsonl", CHATS), read_rows("rows.jsonl", read_chat, CHAT_COLUMNS)),
    "pairs parquet": Reader(write_parquet, read_rows("pairs.parquet", read_pair, PAIR_COLUMNS)),
    "converter jsonl": Reader(
        write_rows("rows.jsonl", PAIRS), lambda folder: list(records.read_records(folder / "rows.jsonl")), refuses=False
    ),
    "converter json": Reader(
        lambda folder: [whole(folder / "rows.json", PAIRS)],
        lambda folder: list(records.read_records(folder / "rows.json")),
        # What begins with no bracket is read as lines, which cost themselves.
        harmless=("empty", "another value"),
    ),
    "converter parquet": Reader(
        write_parquet, lambda folder: list(records.read_records(folder / "pairs.parquet")), harmless=("another beginning",)
    ),
    "photos": Reader(write_photos, lambda folder: load_photos(folder / "photos.parquet")),
    "world": Reader(write_world, lambda folder: run_world(WorldOptions(out=folder / "world", num_scenes=4))),
    "pope": Reader(write_pope, read_evaluation("pope", "answers.jsonl")),
    "repope": Reader(write_repope, read_evaluation("repope", "answers.jsonl")),
    "chair": Reader(write_chair, read_evaluation("chair", "answers.jsonl")),
    "mme": Reader(write_mme, read_evaluation("mme", "answers.jsonl")),
    "dash-b": Reader(write_dash_b, read_evaluation("dash-b", "answers.json")),
    "mmvp": Reader(write_mmvp, read_evaluation("mmvp", "answers.jsonl")),
    "contrast images": Reader(write_contrast, read_evaluation("mmvp", "answers.jsonl")),
    "hallusionbench": Reader(write_hallusion, read_evaluation("hallusionbench", "answers.json")),
    "hallusionbench judged": Reader(write_judged_hallusion, read_evaluation("hallusionbench", "answers.json", judgements="judged.json")),
    "amber": Reader(write_amber, read_evaluation("amber", "answers.jsonl", similarity="table.json", allow_partial="yes")),
    "haloquest": Reader(write_haloquest, read_evaluation("haloquest", "answers.jsonl", judgements="judged.jsonl")),
    "mmhal": Reader(write_mmhal, read_evaluation("mmhal", "answers.json", judgements="judged.json")),
    "object-halbench": Reader(write_halbench, read_halbench),
    "word table": Reader(lambda folder: [whole(folder / "t.json", [["a", "b", 0.9]])], lambda folder: read_table(folder / "t.json")),
    "unfinished answers": Reader(write_unfinished, lambda folder: resume_answers(folder / "pope_answers.jsonl.partial", {"source": "m"})),
    "report": Reader(write_report, read_report),
    "judge cache": Reader(write_judge_cache, read_judge_cache),
    "yaml": Reader(write_config, read_config_file, unnamed=True),
    "scores": Reader(write_scores, lambda folder: run_fuse(FuseOptions(pairs=folder / "pairs.jsonl", out=folder / "scored"))),
    "run record": Reader(write_run, write_card),
    "manifest": Reader(write_checkpoint, read_checkpoint, refuses=False),
    "model config": Reader(write_model_configs, read_model_configs, unnamed=True),
    **{
        f"image {kind}": Reader(write_images(kind), read_image) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
    },
}
