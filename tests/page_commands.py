"""The commands that pages show, and the parsers that would read them: their options exist, their values can be used. Nothing runs."""

import argparse
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import data_tools.program
from mmalign import cli
from mmalign.config import parse_options
from mmalign.errors import UserError
from mmalign.recipes import expand
from tests.conftest import REPOSITORY

OTHERS = {"git", "ln", "lmms-eval", "mkdir", "pip", "pre-commit"}
"""Programs that are not ours."""
KEYWORDS = {"do", "done", "for"}
"""The shell's own, which stand before commands or without one."""


class Shown(NamedTuple):
    """A line of a page's shell block, its continuations joined."""

    page: Path
    number: int
    text: str

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(REPOSITORY) if self.page.is_relative_to(REPOSITORY) else self.page.name}:{self.number}"


class Parsed(Exception):
    """A program got as far as having read its options."""


def read_shown(page: Path) -> Iterator[Shown]:
    """Read the lines of all blocks that name no language, which are a shell's; what is marked to be of an older commit is left out."""
    fence, begun, text = None, 0, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            fence = line if fence is None else None
        elif fence == "```":
            begun, text = (begun, text) if text else (number, "")
            text += line.removesuffix("\\")
            if not line.endswith("\\"):
                if text.strip() and "# at commit" not in text:
                    yield Shown(page, begun, text.strip())
                text = ""


def split_commands(text: str) -> Iterator[tuple[list[str], str | None]]:
    """Split a line into commands, each with the file that its output goes to; brackets around what may be left out are taken away."""
    plain = re.sub(r"\[(--[^\]]+)\]", r"\1", re.sub(r"\$\(\([^)]*\)\)", "1", text))
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not re.fullmatch(r"[;&|]+", word):
            words.append(word)
            continue
        found, target = (words[: words.index(">")], words[words.index(">") + 1]) if ">" in words else (words, None)
        while found and (found[0] == "do" or re.match(r"[A-Z_]+=", found[0])):
            found = found[1:]
        if found:
            yield found, target
        words = []


def check_page(page: Path) -> tuple[int, list[str]]:
    """Parse every command of a page, in the current folder; returns how many of ours there are, and what is wrong with them."""
    count, faults = 0, []
    for shown in read_shown(page):
        for words, target in split_commands(shown.text):
            if words[0] in OTHERS | KEYWORDS:
                continue
            count += 1
            try:
                printed = check_command(words, shown.text)
            except (UserError, AssertionError) as error:
                faults.append(f"{shown.where}: {shlex.join(words)}: {error}")
                continue
            if target is not None:
                Path(target).write_text(printed, encoding="utf-8")
    return count, faults


def check_mentions(page: Path) -> tuple[int, list[str]]:
    """Look at commands within the text of a page: placeholders may stand in them, but no option and no program that is not there."""
    text = re.sub(r"(?ms)^```.*?^```$", lambda block: "\n" * block[0].count("\n"), page.read_text(encoding="utf-8"))
    count, faults = 0, []
    for span in re.finditer(r"`([^`]+)`(?! (?:at|of) commit)", text):
        if not re.match(r"mmalign |python (-m )?(data_tools|schedules|scripts)", span[1]) or "|" in span[1]:
            continue
        words, count = span[1].split(), count + 1
        try:
            check_command([*words, "..."], span[1])
        except (UserError, AssertionError) as error:
            if "unknown option" in str(error) or "unrecognized" in str(error) or ("no program" in str(error) and "NAME" not in span[1]):
                faults.append(f"{Shown(page, text[: span.start()].count(chr(10)) + 1, '').where}: {span[1]}: {error}")
    return count, faults


def check_command(words: list[str], text: str) -> str:
    """Parse a command with its own parser; returns what parsing printed.

    Raises:
        AssertionError: With the parser's message, or with what is unknown.
    """
    first, rest = words[0], words[1:]
    if first == "mmalign":
        return read_options(parse_mmalign, rest)
    if first in ("accelerate", "torchrun"):
        configs = [word for option, word in pairwise(rest) if option == "--config_file"]
        assert all((REPOSITORY / name).is_file() or Path(name).is_file() for name in configs), f"no file {configs}"
        return read_options(parse_mmalign, rest[rest.index("mmalign") + 1 :])
    if first == "python":
        module, rest = (rest[1], rest[2:]) if rest[0] == "-m" else (rest[0].removesuffix(".py").replace("/", "."), rest[1:])
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), f"no program {module}"
        return read_options(lambda words: parse_program(module, words), rest)
    if first == "make":
        return check_make(rest)
    script = REPOSITORY / (rest[0] if first == "sbatch" else first)
    assert script.is_file(), f"unknown command {first}"
    return check_script(script, words, text)


def read_options(parse: Callable[[list[str]], object], words: list[str]) -> str:
    """Call a parser; ``...`` among the words stands for whatever else must be given."""
    given, open_ended = [word.removesuffix("...") for word in words if word != "..."], "..." in words
    for _ in range(2):
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                parse(given)
        except Parsed:
            pass
        except SystemExit as stop:
            missing = re.findall(r"--[a-z-]+", err.getvalue().partition("missing: ")[2].partition("\n")[0])
            if open_ended and missing:
                given += [word for option in missing for word in (option, "X")]
                continue
            if stop.code not in (0, None):
                raise AssertionError(_last_error(err.getvalue())) from stop
        return out.getvalue()
    raise AssertionError(f"can't be filled up: {shlex.join(given)}")


def _last_error(text: str) -> str:
    return next(line for line in reversed(text.strip().splitlines()) if "error: " in line)


def parse_mmalign(words: list[str]) -> None:
    """Do what ``mmalign`` does before it runs a command."""
    if words[:2] == ["recipe", "run"]:
        words = expand(words[2:])
    name = cli._find_name(words, cli.COMMANDS)
    assert name is not None, f"no command mmalign {' '.join(words[:2])}"
    command = cli._choose_variant(name, words)
    options = parse_options(command.options_class(), words[len(name.split()) :], prog=f"mmalign {name}", description="")
    if name.startswith("recipe "):
        command.import_run(options)(options)


def parse_program(module: str, words: list[str]) -> None:
    """Run a program outside the package until its options are read."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any) -> Any:
        found = parse_args(self, *given)
        if type(self) is argparse.ArgumentParser:
            raise Parsed
        return found

    def stop(*given: Any, **named: Any) -> int:
        raise Parsed

    with (
        patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        patch.object(data_tools.program, "run_and_tell", stop),
        patch.object(sys, "argv", [module, *words]),
        patch.object(sys, "path", [str((REPOSITORY / module.replace(".", "/")).parent), *sys.path]),
    ):
        if module.startswith("scripts."):
            runpy.run_module(module, run_name="__main__")
        else:
            importlib.import_module(module).main()


def check_make(words: list[str]) -> str:
    """Look for targets and variables in the Makefile, each once."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        found = re.findall(rf"\$[({{]{name}[)}}]" if is_variable else rf"^{name}:", makefile, re.MULTILINE)
        assert found, f"the Makefile has no {'variable' if is_variable else 'target'} {name}"
        assert is_variable or len(found) == 1, f"the Makefile has the target {name} more than once"
    return ""


def check_script(script: Path, words: list[str], text: str) -> str:
    """Look for a shell script's options and variables in it; those of a batch job are options of the training that it begins."""
    source = script.read_text(encoding="utf-8")
    for name in re.findall(r"\b([A-Z_]+)=", text):
        assert f"${{{name}:?" in source, f"{script.name} reads no {name}"
    options = [word for word in words if word.startswith("--")]
    if handed := re.search(r"(scripts/\w+)\.py \"\$@\"", source):
        return read_options(lambda given: parse_program(handed[1].replace("/", "."), given), words[1:])
    if script.suffix == ".sbatch":
        (begun,) = re.findall(r"(?m)(?:^|-m )mmalign (train [a-z]+|score-difficulty) ", source)
        known = cli.COMMANDS[begun].options_class().__dataclass_fields__
        unknown = [option for option in options if option[2:].replace("-", "_") not in known]
    else:
        unknown = [option for option in options if not re.search(rf"^ +(.*\| )?{option}( [|\\\\]|\))", source, re.MULTILINE)]
    assert not unknown, f"{script.name} knows no {', '.join(unknown)}"
    return ""
