"""YAML as its version 1.2 reads plain words and numbers; PyYAML's own reader is of version 1.1."""

import re
from typing import Any

import yaml

from mmalign.errors import UserError

_SCALARS = {
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    "float": (
        re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
        "-+.0123456789",
    ),
}
"""Tag -> form of its plain words, and the letters that they begin with; of 1.2's core schema."""


class _Loader(yaml.SafeLoader):
    """1e-5 and 010 are the numbers that they look like; yes, no, 12:30 and 2024-01-01 are words; a key stands once."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in held if tag.rpartition(":")[2] not in (*_SCALARS, "timestamp")]
        for first, held in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice: the last one would win without a word."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"{twice[0]!r} stands there twice")
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A leading zero alone makes no octal number."""
        return int(node.value, 0 if node.value.startswith(("0o", "0x")) else 10)


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str | bytes, *, what: str) -> Any:
    """Read a document.

    Raises:
        UserError: If it is none; the message begins with ``what``.
    """
    # Numbers that look right but can't be are ValueErrors of the reader's own parts.
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{what} is no YAML: {' '.join(str(error).split())}") from error
