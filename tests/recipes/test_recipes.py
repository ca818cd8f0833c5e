"""Recipes by name: each names its command, whose options it holds; the words behind the name win."""

from pathlib import Path

import pytest
import yaml

from mmalign.cli import COMMANDS, main
from mmalign.config import read_config
from mmalign.recipes import expand, find_recipes, read_command
from tests.conftest import REPOSITORY

RECIPES = find_recipes()


def test_names_are_the_files_of_the_checkout() -> None:
    files = {str(path.relative_to(REPOSITORY / "scripts")).removesuffix(".yaml") for path in (REPOSITORY / "scripts").rglob("*.yaml")}
    assert set(RECIPES) == files
    assert {"da_dpo/llava-1.5-7b/train", "dho/fine_grained", "llava_mod/d2s", "accelerate/one_gpu"} <= files


@pytest.mark.parametrize("name", RECIPES)
def test_each_holds_options_of_the_command_that_it_names(name: str) -> None:
    command = read_command(RECIPES[name])
    assert (not command) == name.startswith(("accelerate/", "launch/"))
    if command:
        known = next(COMMANDS[" ".join(command[:n])] for n in (2, 1) if " ".join(command[:n]) in COMMANDS)
        fields = getattr(known.options_class(), "__dataclass_fields__")  # noqa: B009
        assert read_config(RECIPES[name], fields)


def test_a_recipe_becomes_its_command() -> None:
    path = REPOSITORY / "scripts" / "da_dpo" / "evaluate" / "pope.yaml"
    words = expand(["da_dpo/evaluate/pope", "--data", "coco_pope", "--model", "m", "--out", "o"])
    assert words == ["evaluate", "pope", "--config", str(path), "--data", "coco_pope", "--model", "m", "--out", "o"]


def test_words_behind_the_name_win(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "recipe",
                "run",
                "llava_mod/d2s",
                "--model",
                "m",
                "--data",
                "d",
                "--out",
                "o",
                "--teacher",
                "t",
                "--epochs",
                "2",
                "--print-config",
            ]
        )
    assert stop.value.code == 0
    options = yaml.safe_load(capsys.readouterr().out)
    assert (options["stage"], options["ce_weight"], options["epochs"], options["teacher"]) == ("dense-to-sparse", 1.0, 2.0, ["t"])


def test_show_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "dho/fine_grained"]) == 0
    assert capsys.readouterr().out == Path(RECIPES["dho/fine_grained"]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dho/fine_grain --data d", "there is no recipe 'dho/fine_grain'; did you mean 'dho/fine_grained'?"),
        ("../../etc/passwd", "there is no recipe '../../etc/passwd'"),
        ("accelerate/one_gpu", "is a launcher's file: save it with mmalign recipe show accelerate/one_gpu > FILE"),
        ("llava_mod/d2d --config=mine.yaml", "a recipe is the file of --config"),
    ],
)
def test_what_is_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "run", *words.split()]) == 2
    assert message in capsys.readouterr().err
