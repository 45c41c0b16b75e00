"""Plain Python values from what callers give: numpy's and torch's scalars turn into int and bool, all else is refused.

A value that is kept as numpy gave it would end up in checkpoints, which `torch.load(weights_only=True)` and JSON then
refuse, and its sums would wrap where Python's do not.
"""

import operator
from typing import Any

from coma.errors import UsageError


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Return an integer of Python, numpy or torch as an int.

    Args:
        name: the argument's, for the message.
        value: what was given for it.
        least: the smallest that is allowed.

    Raises:
        UsageError: if it is no whole number or too small.
    """
    try:
        number = int(operator.index(value))
    except TypeError:
        raise UsageError(f"{name} is {shown(value)}; give a whole number") from None
    if least is not None and number < least:
        raise UsageError(f"{name} is {number}; give {least} or more")
    return number


def flag(name: str, value: Any) -> bool:
    """Return a truth value of Python, numpy or torch as a bool. Raises UsageError: for words, which are all true."""
    try:
        if value in (0, 1):
            return bool(value)
    except (TypeError, ValueError, RuntimeError):  # an array has many
        pass
    raise UsageError(f"{name} is {shown(value)}; give True or False")


def shown(value: Any) -> str:
    """Return what a message says of a value: its repr in one line, cut after 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
