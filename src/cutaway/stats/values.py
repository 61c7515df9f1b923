"""What the functions of this room accept as numbers and as lists of them, and the checks they share."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from cutaway.errors import UsageError

Number: TypeAlias = int | float | np.integer | np.floating
Values: TypeAlias = Sequence[Any] | np.ndarray
"""A list, tuple or array of numbers."""


def check_level(level: Number) -> None:
    """Refuse a confidence level outside (0, 1), such as 95."""
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must lie strictly between 0 and 1, such as 0.95")
