"""What a user can cause and mend: told in one line. Anything else is a fault of ours and shows its traceback."""


class UserError(ValueError):
    """An input that can't be used: the message has the value, what was expected, and the next step."""
