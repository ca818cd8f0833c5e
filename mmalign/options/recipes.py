"""Recipes by name."""

from dataclasses import dataclass, field

from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class ListRecipesOptions(Options):
    """Options of ``mmalign recipe list``."""


@dataclass(frozen=True, kw_only=True)
class ShowRecipeOptions(Options):
    """Options of ``mmalign recipe show``."""

    name: str = field(metadata={"positional": True})
    """recipe, as mmalign recipe list names it, such as da_dpo/llava-1.5-7b/train"""


@dataclass(frozen=True, kw_only=True)
class RunRecipeOptions(Options):
    """Options of ``mmalign recipe run``."""

    name: str = field(metadata={"positional": True})
    """recipe, as mmalign recipe list names it; behind it the options of its command, which win over the recipe's"""
