"""A finished run's card: written by the command, completed by an evaluation, valid for the Hub."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value
from huggingface_hub import ModelCard

from mmalign.cli import main
from mmalign.runs.cards import add_result, write_card
from mmalign.runs.run_record import read_record
from tests.tiny_models import random_image

RESULT = {
    "benchmark": "pope",
    "mode": "official",
    "metrics": {"pope/random/accuracy": 0.75},
    "num_answers": 8,
    "data": {"pope_random.jsonl": "a" * 64},
}


@pytest.fixture(scope="module")
def run_folder(tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after one step of fine-tuning."""
    folder = tmp_path_factory.mktemp("card")
    turns = [{"role": "user", "content": "what do you see"}, {"role": "assistant", "content": "a red star"}]
    rows = [{"images": [random_image(i)], "messages": turns} for i in range(4)]
    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"images": List(Image()), "messages": List(message)})
    Dataset.from_list(rows, features=features).to_parquet(str(folder / "chats.parquet"))
    words = ["train", "sft", "--model", str(tiny_llava_dir), "--data", str(folder / "chats.parquet"), "--out", str(folder / "run")]
    assert main([*words, "--max-steps", "1", "--batch-size", "4", "--license", "mit"]) == 0
    return folder / "run"


def test_training_leaves_a_card_with_the_run_in_it(run_folder: Path, tiny_llava_dir: Path) -> None:
    card = ModelCard.load(run_folder / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.tags) == ("mit", "image-text-to-text", ["mmalign", "sft"])
    record = read_record(run_folder)
    for fact in (str(tiny_llava_dir), record["data"]["chats.parquet"], "`mmalign train sft`, 1 optimiser steps of 4 rows", "4 rows of"):
        assert fact in card.text
    assert f"{record['parameters']['total']:,}" in card.text
    assert "has not been evaluated" in card.text


def test_an_evaluation_enters_the_card_and_a_second_one_replaces_it(run_folder: Path) -> None:
    for value in (0.75, 0.5):
        add_result(run_folder, {**RESULT, "metrics": {"pope/random/accuracy": value}})
    text = (run_folder / "README.md").read_text()
    assert "| pope (official) | pope/random/accuracy | 0.5000 | 8 |" in text
    assert "0.7500" not in text
    assert len(read_record(run_folder)["evaluation"]) == 1


def test_greedy_and_searched_answers_stand_side_by_side(run_folder: Path) -> None:
    searched = {"decoding": {"num_beams": 5, "length_penalty": 0.0}, "metrics": {"pope/random/accuracy": 0.25}}
    for result in (RESULT, {**RESULT, **searched}):
        add_result(run_folder, result)
    text = (run_folder / "README.md").read_text()
    assert "| pope (official) | pope/random/accuracy | 0.7500 | 8 |" in text
    assert "| pope (official, 5 beams, length penalty 0.0) | pope/random/accuracy | 0.2500 | 8 |" in text


def test_evaluations_that_end_at_once_are_all_kept(run_folder: Path) -> None:
    variants = [f"split {number}" for number in range(8)]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(add_result, [run_folder] * 8, [{**RESULT, "variant": variant} for variant in variants]))
    assert {result.get("variant") for result in read_record(run_folder)["evaluation"]} >= {*variants}


def test_license_passes_to_the_model_that_is_trained_next(run_folder: Path, tmp_path: Path) -> None:
    data, out = run_folder.parent / "chats.parquet", tmp_path / "next"
    words = ["train", "sft", "--model", str(run_folder), "--data", str(data), "--out", str(out)]
    assert main([*words, "--max-steps", "1", "--batch-size", "4"]) == 0
    assert ModelCard.load(out / "README.md").data.license == "mit"


def test_folders_that_hold_no_finished_run(tmp_path: Path) -> None:
    assert add_result(tmp_path, RESULT) is None
    (tmp_path / "mmalign_run.json").write_text(json.dumps({"method": "sft", "options": {}, "data": {}}))
    with pytest.raises(ValueError, match="holds no finished run"):
        write_card(tmp_path)
