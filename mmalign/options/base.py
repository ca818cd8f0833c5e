"""The root of all options."""

import math
from typing import Any

from mmalign.errors import UserError


class Options:
    """What can be set. A class that refuses values does so in ``__post_init__``, and calls that of ``super()``."""

    def __post_init__(self) -> None:
        """Raise UserError with the option, its value and what is expected: here for what no option can be."""
        values: dict[str, Any] = vars(self)
        for name, value in values.items():
            if any(isinstance(one, float) and not math.isfinite(one) for one in (value if isinstance(value, list) else [value])):
                raise UserError(f"{name} is {value}; expected a finite number")
        self.refuse_below(0, *(name for name in values if name.endswith("seed")))

    def refuse_below(self, least: float, *names: str) -> None:
        """Raise UserError if one of the named options is set and is below ``least``."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"{name} is {value}; expected at least {least}")

    def refuse_outside(self, least: float, end: float, *names: str) -> None:
        """Raise UserError if one of the named options is set and is below ``least``, or is ``end`` or more."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not least <= value < end:
                raise UserError(f"{name} is {value}; expected from {least:g} to below {end:g}")

    def refuse_no_share(self, *names: str) -> None:
        """Raise UserError if one of the named options is below 0 or above 1."""
        for name in names:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}; expected a share, from 0 to 1")

    def refuse_zero(self, *names: str) -> None:
        """Raise UserError if one of the named options is set and is not positive."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; expected a positive number")

    def refuse_idle(self, *names: str, needed: str) -> None:
        """Raise UserError if one of the named options was changed, where nothing reads it without ``needed``."""
        for name in self.changed(*names):
            raise UserError(f"{name} is {getattr(self, name)}, which only {needed} reads; add that, or leave it out")

    def changed(self, *names: str) -> list[str]:
        """Those of the named options that are not at their defaults."""
        return [name for name in names if getattr(self, name) != self.__dataclass_fields__[name].default]  # type: ignore[attr-defined]
