"""Pages that the documentation site is given when it is built, from the code itself: every command with its options, every docstring."""

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from mmalign.cli import COMMANDS, VARIANTS, Command  # noqa: E402
from mmalign.config import is_required, read_help, show_default  # noqa: E402
from mmalign.tables import markdown_table  # noqa: E402

ROOMS = ("losses", "engine", "data", "difficulty", "evaluation", "models", "methods", "training", "classifier")
"""Packages whose docstrings become pages."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``commands.md``, and a page for each package."""
    files.append(File.generated(config, "commands.md", content=write_commands()))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=write_room(room)))
    return files


def write_room(room: str) -> str:
    """Write a package's page: its modules, which mkdocstrings fills in."""
    modules = sorted(path.stem for path in (REPOSITORY / "mmalign" / room).glob("*.py") if not path.stem.startswith("__"))
    return "\n\n".join([f"# mmalign.{room}", *(f"::: mmalign.{room}.{module}" for module in modules)]) + "\n"


def write_commands() -> str:
    """Write all commands: what each does, and a table of its options."""
    parts = [
        "# Commands",
        "Written from the code. Every option can stand on the command line or in a YAML file: [options.md](options.md).",
    ]
    for name, command in COMMANDS.items():
        parts += _describe(name, command)
        if name in VARIANTS:
            option, variant = VARIANTS[name]
            parts += _describe(f"{name} {option}", variant)
    return "\n\n".join(parts) + "\n"


def _describe(name: str, command: Command) -> list[str]:
    options = command.options_class()
    hints, texts = typing.get_type_hints(options), read_help(options)
    rows = [[_name(field), _type(hints[field.name]), _default(field), texts[field.name]] for field in dataclasses.fields(options)]
    return [f"## mmalign {name}", f"{command.summary[0].upper()}{command.summary[1:]}.", markdown_table(_HEADER, rows, text=range(4))]


_HEADER = ("option", "values", "default", "what")


def _name(field: dataclasses.Field[Any]) -> str:
    return f"`--{field.name.replace('_', '-')}`" + (" (may stand first)" if field.metadata.get("positional") else "")


def _default(field: dataclasses.Field[Any]) -> str:
    return "required" if is_required(field) else " ".join(show_default(field).split())


def _type(hint: Any) -> str:
    """Choices, or the type as a user writes it."""
    arguments = [one for one in typing.get_args(hint) if one is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if typing.get_origin(hint) is list:
        return f"several: {_type(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return "YAML mapping"
    if len(arguments) == 1:
        return _type(arguments[0])
    return {"str": "text", "Path": "path", "int": "integer", "float": "number", "bool": "yes or no"}.get(hint.__name__, hint.__name__)
