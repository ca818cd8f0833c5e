"""Numbers that come from a file's row or from a function of the user's."""

import sys
from typing import Any


def is_finite(value: Any) -> bool:
    """Whether a value is a number that is finite as a float; whole numbers in JSON have no largest one."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
