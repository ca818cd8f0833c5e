"""The command line: help, typos, config files."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from mmalign import __version__
from mmalign.cli import COMMANDS, RENAMED, main
from mmalign.config import build_options, parse_options
from mmalign.errors import UserError
from mmalign.options.methods import PreferenceOptions
from mmalign.options.rows import WordingOptions
from mmalign.yaml_reader import read_yaml


@dataclass(frozen=True, kw_only=True)
class Sample:
    data: Path = field(metadata={"positional": True})
    """the data"""
    rate: float = 1e-3
    """100% of it"""
    steps: int = 10
    mode: Literal["off", "paper"] = "off"
    root: Path | None = None
    parts: list[Literal["a", "b"]] = field(default_factory=list)
    flag: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def parse(*words: str) -> Sample:
    return parse_options(Sample, words, prog="sample", description="A sample.")


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_defaults_file_and_words_in_that_order(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    # YAML reads 2e-6 as text; it must arrive as a number.
    config.write_text("rate: 2e-6\nsteps: 7\nparts: [a, b]\nextra: {optim: adafactor}\nroot: null\n")
    got = parse("d.parquet", "--config", str(config), "--steps", "9", "--flag", "--mode=paper")
    assert got == Sample(
        data=Path("d.parquet"), rate=2e-6, steps=9, mode="paper", parts=["a", "b"], flag=True, extra={"optim": "adafactor"}
    )
    assert parse("--data", "x").data == Path("x")


def test_home_in_paths_that_no_shell_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("root: ~/images\n")
    options = parse("--data=~/pairs", "--config", str(tmp_path / "run.yaml"))
    assert (options.data, options.root) == (tmp_path / "pairs", tmp_path / "images")
    assert parse("--data=~no-such-user.jsonl").data == Path("~no-such-user.jsonl")


@dataclass(frozen=True, kw_only=True)
class Several:
    parts: list[Path] = field(metadata={"positional": True})
    """the parts"""
    steps: int = 10


def test_several_values_may_stand_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def parse_several(*words: str) -> Several:
        return parse_options(Several, words, prog="sample", description="A sample.")

    parts = [Path("a"), Path("b")]
    assert parse_several("a", "b", "--steps", "3") == parse_several("--steps", "3", "a", "b") == Several(parts=parts, steps=3)
    assert parse_several("--parts", "a", "b") == Several(parts=parts)
    (tmp_path / "c.yaml").write_text("parts: [a, b]")
    assert parse_several("--config", str(tmp_path / "c.yaml")) == Several(parts=parts)
    with pytest.raises(SystemExit):
        parse_several("--steps", "3")
    assert "missing: --parts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_several("a", "--parts", "b")
    assert "parts is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--stepz", "3"], "unknown option '--stepz'; did you mean '--steps'?"),
        (["x", "--steps", "3", "4"], "'4' is one value too many: only options shown as [NAME ...] take several"),
        ([], "missing: --data"),
        (["--data", "x", "--data", "y"], "--data is given twice: x and y; put the files into one folder, and name that"),
        (["x", "--mode", "papr"], "mode is 'papr'; expected one of off, paper"),
        (["x", "--steps", "1.5"], "steps is '1.5'; expected int"),
        (["x", "--config", "nowhere.yaml"], "config file not found: nowhere.yaml"),
    ],
)
def test_faults_of_the_command_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in error_of(capsys, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning-rat: 1", "unknown option 'learning_rat'"),
        ("rte: 1", "unknown option 'rte'; did you mean 'rate'?"),
        ("- a", "holds a list; expected options as 'name: value' lines"),
        ("flag: maybe", "flag is 'maybe'; expected true or false"),
        ("steps: 2.5", "steps is 2.5; expected int"),
        ("parts: [a, c]", "parts is 'c'; expected one of a, b"),
        ("rate: null", "rate is None; expected float"),
        ("root: [a, b]", "root is ['a', 'b']; expected Path"),
        ("root: ''", "root is ''; expected Path"),
        ("rate: 0.1\nrate: 0.2", "is no YAML: 'rate' stands there twice"),
        ("learning_rate: 1\nlearning-rate: 2", "has 'learning_rate' twice; give it once"),
        ("extra: {use_cpu: true, use_cpu: false}", "is no YAML: 'use_cpu' stands there twice"),
    ],
)
def test_faults_of_the_config_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert message in error_of(capsys, "x", "--config", str(tmp_path / "c.yaml"))


def test_plain_words_of_a_config_file_are_what_they_look_like(tmp_path: Path) -> None:
    """YAML 1.1 reads yes, no, on and off as true and false, 1e-5 as a text, and 2024-01-01 as a date."""
    config = tmp_path / "c.yaml"
    config.write_text(
        "model: x\ndata: d\nout: o\nlearning_rate: 1e-5\ndifficulty_mode: off\nlog_project: 2024-01-01\n"
        "dora: no\nrslora: false\ntrainer: {adam_epsilon: 1e-6, save_strategy: no}\n"
    )
    options = parse_options(PreferenceOptions, ["--config", str(config)], prog="x", description="")
    assert (options.learning_rate, options.difficulty_mode, options.log_project) == (1e-5, "off", "2024-01-01")
    assert (options.dora, options.rslora, options.trainer) == (False, False, {"adam_epsilon": 1e-6, "save_strategy": "no"})
    config.write_text("question: Right?\nanswers: [yes, no]\n")
    assert parse_options(WordingOptions, ["--config", str(config)], prog="x", description="").answers == ["yes", "no"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("010", 10), ("-7", -7), ("0o17", 15), ("0x1F", 31), (".5", 0.5), ("1.", 1.0), ("1E+3", 1000.0), ("-.inf", -math.inf)],
        *[(word, word) for word in ("12:30:45", "1_000", "0b1", "1e", "on")],
        *[("~", None), ("", None)],
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    """The core schema, section 10.3.2 of the specification; integers are not octal for a leading zero, and no times."""
    found = read_yaml(text, what="it")
    assert (found, type(found)) == (value, type(value))
    for text, message in (("log_project: true", "log_project is True; expected str"), ("seed: true", "seed is True; expected int")):
        with pytest.raises(UserError, match=message):
            build_options(PreferenceOptions, {"model": "x", "data": "d", "out": "o", **yaml.safe_load(text)})


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_commands_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: mmalign {name}" in out
    assert COMMANDS[name].summary in out
    # Every option explains itself.
    options = [line for line in out.splitlines() if line.strip().startswith("--")]
    assert options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "mmalign train: choose one of: contrastive, sft, mimic, preference"),
        (["classifier"], "mmalign classifier: choose one of: train, fit-head, distill-images, discover-classes, evaluate, tune, export"),
        (["evalute", "pope"], "unknown command 'evalute'; did you mean 'evaluate'?"),
        (["score-dificulty"], "did you mean 'score-difficulty'?"),
    ],
)
def test_unknown_commands(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("group", ["train", "classifier", "report", "world"])
def test_help_of_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str], group: str) -> None:
    assert main([group, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"usage: mmalign {group} COMMAND [options]"
    assert [line.split("  ")[1] for line in lines[2:]] == [name for name in COMMANDS if name.startswith(f"{group} ")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("score-difficulty p --clip c --mllm m --out o --batch-size 0", "batch_size is 0; expected at least 1"),
        ("train sft --model m --data d --out o --check-workers -1", "check_workers is -1; expected at least 0"),
        ("cache-teacher p --model m --out o --max-length 0", "max_length is 0; expected at least 1"),
        ("evaluate pope --data d --model m --batch-size -1", "batch_size is -1; expected at least 1"),
        ("evaluate pope --data d --model m --judge-retries -1", "judge_retries is -1; expected at least 0"),
        ("evaluate pope --data d --model m --judge-timeout 0", "judge_timeout is 0.0; expected a positive number of seconds"),
        ("train sft --model m --data d --out o --save-steps 0", "save_steps is 0; expected at least 1"),
        ("classifier evaluate m --data d --batch-size 0", "batch_size is 0; expected at least 1"),
        ("report eval r --out o --max-wrong -1", "max_wrong is -1; expected at least 0"),
    ],
)
def test_numbers_that_make_no_sense(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_earlier_names_still_run_and_name_the_new_one(capsys: pytest.CaptureFixture[str], old: str, new: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*old.split(), "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert f"usage: mmalign {new} " in said.out
    assert f"mmalign {old}: is now called 'mmalign {new}'" in said.err
    assert len(said.err.splitlines()) == 1
    main([])
    assert f"  {old} " not in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_a_users_fault_is_told_in_a_line_and_traced_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fuse-difficulty", str(tmp_path / "no.parquet"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "no scores in" in capsys.readouterr().err
    with pytest.raises(UserError, match="no scores in"):
        main([*words, "--traceback"])
    monkeypatch.setenv("MMALIGN_DEBUG", "1")
    with pytest.raises(UserError, match="no scores in"):
        main(words)


def test_a_fault_of_ours_is_not_told_as_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(options: object) -> None:
        raise ValueError("a fault of the program")

    monkeypatch.setattr("mmalign.runs.difficulty.run_fuse", broken)
    with pytest.raises(ValueError, match="a fault of the program"):
        main(["fuse-difficulty", str(tmp_path / "no.parquet"), "--out", str(tmp_path / "out")])


def test_options_are_printed_as_the_yaml_that_gives_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "preference", "--model", "m", "--data", "p.parquet", "--out", "o", "--beta", "0.2", "--objective", "dpo", "ipo"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print-config"])
    assert stop.value.code == 0
    config = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(config)
    with pytest.raises(SystemExit):
        main(["train", "preference", "--config", str(tmp_path / "run.yaml"), "--print-config"])
    assert capsys.readouterr().out == config
    assert "beta: 0.2" in config
