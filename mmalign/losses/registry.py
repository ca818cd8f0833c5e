"""Objectives by name: a factory each, whose keyword arguments are its hyper-parameters.

In a command or a YAML file an objective is ``NAME`` or ``NAME:parameter=value,parameter=value``; ``weight`` is its factor in a sum
of several.
"""

import inspect
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, Literal, TypeVar

from mmalign.errors import UserError

Built = TypeVar("Built")
Factory = TypeVar("Factory", bound=Callable[..., Any])
WEIGHT = "weight"


@dataclass(frozen=True)
class Named(Generic[Built]):
    """An objective in a sum of several."""

    name: str
    objective: Built
    weight: float = 1.0


class Registry(Generic[Built]):
    """Names to factories of one kind of objective."""

    def __init__(self, kind: str) -> None:
        """Start empty; ``kind`` is for messages."""
        self.kind = kind
        self._factories: dict[str, Callable[..., Built]] = {}
        self._sums: dict[str, tuple[str, ...]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Add the decorated factory.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self._factories:
            raise UserError(f"{self.kind} objective {name!r} is already registered; choose another name")

        def add(factory: Factory) -> Factory:
            self._factories[name] = factory
            return factory

        return add

    def register_sum(self, name: str, parts: Sequence[str]) -> None:
        """Give a sum of objectives a name of its own, by which a user asks for it; whoever changes it writes it out."""
        self._sums[name] = tuple(parts)

    def sums(self) -> dict[str, tuple[str, ...]]:
        """The sums by name, each as a user would write it out."""
        return dict(self._sums)

    def unregister(self, name: str) -> None:
        """Take a name away, as a test or a notebook wants that defines it twice."""
        del self._factories[name]

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        return list(self._factories)

    def parameters(self, name: str) -> dict[str, Any]:
        """Hyper-parameters of an objective with their types.

        Raises:
            ValueError: If the name is unknown; the message holds the nearest.
        """
        if name not in self._factories:
            if name in self._sums:
                raise UserError(f"{name} is the sum {','.join(self._sums[name])}; to change it, write it out")
            near = get_close_matches(name, [*self._factories, *self._sums], n=5)
            # Of names that are as near, the one whose letters were exchanged.
            near.sort(key=lambda known: sorted(known) != sorted(name))
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join([*self._factories, *self._sums])}"
            raise UserError(f"unknown {self.kind} objective {name!r}; {hint}")
        hints = typing.get_type_hints(self._factories[name])
        return {key: hints[key] for key in inspect.signature(self._factories[name]).parameters}

    def build(self, name: str, **parameters: Any) -> Built:
        """Build an objective.

        Raises:
            ValueError: If the name or a parameter is unknown, or a value makes no sense.
        """
        known = self.parameters(name)
        for key in parameters:
            if key not in known:
                raise UserError(f"objective {name} has no parameter {key!r}; it has {', '.join(known) or 'none'}")
        return self._factories[name](**parameters)

    def parse(self, text: str, *, beta: float | None = None) -> Named[Built]:
        """Build an objective from ``NAME:parameter=value,...``.

        Args:
            text: As a user writes it.
            beta: For objectives that have a beta and are not given one in the text.

        Raises:
            ValueError: As ``build``, and if a value can't be read as its parameter's type.
        """
        name, _, rest = text.strip().partition(":")
        known = self.parameters(name)
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals or (key != WEIGHT and key not in known):
                raise UserError(f"objective {name}: {item!r} is no parameter=value; parameters: {', '.join([*known, WEIGHT])}")
            if key in values:
                raise UserError(f"objective {name}: {key} is given twice; give it once")
            values[key] = _read(value, float if key == WEIGHT else known[key], name=f"{name}: {key}")
        weight = values.pop(WEIGHT, 1.0)
        if not weight > 0:
            raise UserError(f"{name}: weight is {weight}; expected a positive number")
        if beta is not None and "beta" in known:
            values.setdefault("beta", beta)
        return Named(name, self.build(name, **values), weight)

    def parse_sum(self, texts: Sequence[str], *, beta: float | None = None) -> tuple[Named[Built], ...]:
        """Build the objectives of a weighted sum.

        Args:
            texts: One objective or several in each, separated by commas: ``dpo``, ``dpo,orpo:odds_weight=0.2,weight=0.5``.
            beta: As in ``parse``.

        Raises:
            ValueError: As ``parse``; if there is no objective, one is named twice, or none has use for ``beta``.
        """
        named = tuple(self.parse(text, beta=beta) for given in _split(texts) for text in self._sums.get(given, (given,)))
        names = [one.name for one in named]
        if not names:
            raise UserError(f"no objective is named; choose one or more of {', '.join(self.names())}")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"objective {twice[0]} is named twice; name it once, with its parameters and weight")
        if beta is not None and not any("beta" in self.parameters(name) for name in names):
            raise UserError(f"beta is {beta}, and {', '.join(names)} has none; leave it out")
        return named


def positive(value: float, name: str) -> float:
    """Return a hyper-parameter that must be positive.

    Raises:
        ValueError: If it is not.
    """
    if not value > 0:
        raise UserError(f"{name} is {value}; expected a positive number")
    return value


def _split(texts: Sequence[str]) -> list[str]:
    """Take a list of objectives apart: a piece without ``=``, or with a colon before it, begins the next one."""
    parts: list[str] = []
    for text in texts:
        for number, piece in enumerate(filter(None, (piece.strip() for piece in text.split(",")))):
            if number and "=" in piece and ":" not in piece.partition("=")[0]:
                parts[-1] += f"{',' if ':' in parts[-1] else ':'}{piece}"
            else:
                parts.append(piece)
    return parts


def _read(text: str, hint: Any, *, name: str) -> Any:
    """Read a value of a type that factories use: numbers, bool, Literal; ``X | None`` is read as X."""
    hint = next((kind for kind in typing.get_args(hint) if type(None) in typing.get_args(hint) and kind is not type(None)), hint)
    if typing.get_origin(hint) is Literal:
        if text not in typing.get_args(hint):
            raise UserError(f"{name} is {text!r}; expected one of {', '.join(typing.get_args(hint))}")
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{name} is {text!r}; expected true or false")
        return text.lower() == "true"
    try:
        value = hint(text)
    except ValueError as error:
        raise UserError(f"{name} is {text!r}; expected a {hint.__name__}") from error
    if not math.isfinite(value):
        raise UserError(f"{name} is {text!r}; expected a finite number")
    return value
