"""The root of all options."""


class Options:
    """What can be set. A class that refuses values does so in ``__post_init__``, and calls that of ``super()``."""

    def __post_init__(self) -> None:
        """Raise UserError with the option, its value and what is expected."""
