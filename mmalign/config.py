"""Options of a command: a dataclass, filled from its defaults, a YAML file and the command line, in that order.

A field's help is the text below it; docs/options.md says why this is no library.
"""

import argparse
import ast
import dataclasses
import inspect
import os
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from mmalign.errors import UserError
from mmalign.yaml_reader import read_yaml

Options = TypeVar("Options")
_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}


def parse_options(options_class: type[Options], argv: Sequence[str], *, prog: str, description: str) -> Options:
    """Fill ``options_class`` from command-line words.

    A field becomes ``--its-name``; a field with ``metadata={"positional": True}`` may also stand first without a name, with several
    values where it is a list. ``--config FILE`` reads YAML with the same names, ``--print-config`` writes it. ``--help`` shows the options
    in groups: first what must be given, then a class and its bases, each under the first line of its docstring.

    Raises:
        SystemExit: On ``--help`` and on words that can't be used, with a message that names the nearest option.
    """
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    fields = {f.name: f for f in dataclasses.fields(options_class)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(options_class)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--print-config", action="store_true", help="print all options as YAML for --config, and stop")
    groups = _make_groups(parser, options_class)
    texts = read_help(options_class)
    positional = [name for name, f in fields.items() if f.metadata.get("positional")]
    for name in positional:
        help_text = f"same as --{_dashed(name)}"
        nargs = "*" if typing.get_origin(hints[name]) is list else "?"
        parser.add_argument(f"_{name}", metavar=name.upper(), nargs=nargs, default=argparse.SUPPRESS, help=help_text)
    for name, f in fields.items():
        _add_argument(groups[name], name, hints[name], f, texts.get(name, ""))
    given = vars(parser.parse_args(list(argv)))
    for name in positional:
        first = given.pop(f"_{name}", None)
        if first and name in given:
            parser.error(f"{name} is given twice: {first} and --{_dashed(name)} {given[name]}")
        if first:
            given[name] = first
    config, prints = given.pop("config"), given.pop("print_config")
    try:
        from_file = {} if config is None else read_config(config, fields)
        values = {name: coerce(value, hints[name], name=name) for name, value in {**from_file, **given}.items()}
    except UserError as error:
        parser.error(str(error))
    required = _missing(fields, values)
    if required:
        parser.error(f"missing: {', '.join('--' + _dashed(name) for name in required)}")
    try:
        options = options_class(**values)
    except UserError as error:
        # Options that don't go together.
        parser.error(str(error))
    if prints:
        print(yaml.safe_dump(plain_values(options), sort_keys=False, allow_unicode=True), end="")
        parser.exit(0)
    return options


def build_options(options_class: type[Options], given: Mapping[str, Any]) -> Options:
    """Fill ``options_class`` from values by name, as Python has them.

    Raises:
        UserError: If a name is unknown or missing, or a value can't be used.
    """
    fields = {f.name: f for f in dataclasses.fields(options_class)}  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            raise UserError(f"unknown option {name!r}{_nearest(name, fields)}")
    if required := _missing(fields, given):
        raise UserError(f"missing: {', '.join(required)}")
    hints = typing.get_type_hints(options_class)
    return options_class(**{name: coerce(value, hints[name], name=name) for name, value in given.items()})


def _missing(fields: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    return [name for name, f in fields.items() if is_required(f) and name not in given]


def plain_values(options: Any) -> dict[str, Any]:
    """Turn options into values that YAML and JSON hold, paths as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: plain(getattr(options, field.name)) for field in dataclasses.fields(options)}


def read_help(options_class: type) -> dict[str, str]:
    """Read the text below each field of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for owner in reversed(options_class.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _make_groups(parser: argparse.ArgumentParser, options_class: type) -> dict[str, Any]:
    """What must be given, and a group for each class that states options, the command's own first; a field is its first owner's."""
    owners: dict[str, type] = {}
    for owner in reversed(options_class.__mro__):
        for name in inspect.get_annotations(owner) if dataclasses.is_dataclass(owner) else ():
            owners.setdefault(name, owner)
    required = [field.name for field in dataclasses.fields(options_class) if is_required(field)]
    first = parser.add_argument_group("Required") if required else None
    groups = {
        owner: parser.add_argument_group((owner.__doc__ or owner.__name__).partition("\n")[0].rstrip(".").replace("``", ""))
        for owner in options_class.__mro__
        if any(of is owner and name not in required for name, of in owners.items())
    }
    return {name: first if name in required else groups[owner] for name, owner in owners.items()}


def read_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Read a YAML file of options; dashes and underscores in names are the same.

    Raises:
        ValueError: If the file is missing or no mapping, or a key is unknown; the message names the nearest key.
    """
    if not path.is_file():
        raise UserError(f"config file not found: {path}")
    values = read_yaml(path.read_bytes(), what=str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected options as 'name: value' lines")
    names = [str(key).replace("-", "_") for key in values]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has {twice[0]!r} twice; give it once")
    values = dict(zip(names, values.values(), strict=True))
    for key in values:
        if key not in known:
            raise UserError(f"{path}: unknown option {key!r}{_nearest(key, known)}")
    return values


def coerce(value: Any, hint: Any, *, name: str) -> Any:
    """Convert a YAML or command-line value to a field's type.

    Raises:
        ValueError: With the option's name, the value and what was expected.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not type(None))
        # Of words such as nf4 and none, none is one; not given is another thing.
        absent = value is None or (value in ("none", "null") and value not in typing.get_args(inner))
        return None if absent else coerce(value, inner, name=name)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{name} is {value!r}; expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is list:
        return [coerce(item, arguments[0], name=name) for item in (value if isinstance(value, list) else [value])]
    if origin is dict:
        value = read_yaml(value, what=name) if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise UserError(f"{name} is {value!r}; expected a mapping")
        return value
    if hint is bool:
        value = _SWITCHES.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise UserError(f"{name} is {value!r}; expected true or false")
        return value
    try:
        if isinstance(value, bool) or (hint is int and isinstance(value, float) and value != int(value)):
            raise ValueError
        # Anything has a text, and an empty path is the folder that one stands in.
        if value is None or isinstance(value, (list, dict)) or (hint is Path and value == ""):
            raise ValueError
        # A shell leaves ~ as it is in --out=~/run, and a YAML file has none; a folder called ~ is a trap.
        return Path(os.path.expanduser(value)) if hint is Path else hint(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{name} is {value!r}; expected {hint.__name__}") from error


class _Parser(argparse.ArgumentParser):
    """Names the nearest option where argparse only says that one is unknown."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ") if message.startswith("unrecognized") else None
        if unknown is not None:
            word = next((word for word in unknown.split() if word.startswith("-")), unknown.split()[0])
            known = [option for action in self._actions for option in action.option_strings]
            message = f"unknown option {word!r}{_nearest(word.split('=')[0], known)}"
            if not word.startswith("-"):
                message = f"{word!r} is one value too many: only options shown as [NAME ...] take several"
        self.exit(2, f"{self.prog}: error: {message}\nTry '{self.prog} --help'.\n")


class _OneDataset(argparse.Action):
    """Refuses data that are named again: other options are overridden so, but who names two files means both."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        first = getattr(namespace, self.dest, None)
        if first not in (None, values):
            parser.error(f"{option_string} is given twice: {first} and {values}; put the files into one folder, and name that")
        setattr(namespace, self.dest, values)


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        # The options stand below with their meaning; a bracketed list of forty names before them helps nobody.
        required = [f"--{_dashed(action.dest)} {action.metavar or ''}".strip() for action in actions if action.required]
        first = [str(action.metavar) for action in actions if not action.option_strings]
        return f"usage: {' '.join([self._prog, *first, *required, '[options]'])}\n\n"


def _add_argument(parser: Any, name: str, hint: Any, field: Any, help_text: str) -> None:
    default = "" if is_required(field) else show_default(field)
    help_text += f" (default: {default})" if default else ""
    keywords: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": help_text.replace("%", "%%")}
    inner = _strip_optional(hint)
    if inner is bool:
        parser.add_argument(f"--{_dashed(name)}", action=argparse.BooleanOptionalAction, **keywords)
        return
    item = typing.get_args(inner)[0] if typing.get_origin(inner) is list else inner
    if typing.get_origin(inner) is list:
        # Given again, it adds: --model A --model B.
        keywords |= {"nargs": "*", "action": "extend"}
    elif name == "data":
        keywords["action"] = _OneDataset
    if typing.get_origin(item) is Literal:
        keywords["metavar"] = "{" + ",".join(map(str, typing.get_args(item))) + "}"
    else:
        keywords["metavar"] = {int: "N", float: "X", Path: "PATH"}.get(item, "TEXT")
    parser.add_argument(f"--{_dashed(name)}", **keywords)


def is_required(field: Any) -> bool:
    """Whether a field must be given."""
    return field.default is field.default_factory is dataclasses.MISSING


def show_default(field: Any) -> str:
    """A field's default as it is typed; empty where there is none to type."""
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return "" if default in (None, [], {}, "") else text


def _strip_optional(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(argument for argument in typing.get_args(hint) if argument is not type(None))
    return hint


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
