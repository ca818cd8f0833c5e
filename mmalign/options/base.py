"""The root of all options."""

from mmalign.errors import UserError


class Options:
    """What can be set. A class that refuses values does so in ``__post_init__``, and calls that of ``super()``."""

    def __post_init__(self) -> None:
        """Raise UserError with the option, its value and what is expected."""

    def refuse_below(self, least: float, *names: str) -> None:
        """Raise UserError if one of the named options is set and is below ``least``."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"{name} is {value}; expected at least {least}")

    def changed(self, *names: str) -> list[str]:
        """Those of the named options that are not at their defaults."""
        return [name for name in names if getattr(self, name) != self.__dataclass_fields__[name].default]  # type: ignore[attr-defined]
