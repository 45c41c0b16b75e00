"""What can go wrong that is not a bug: each error carries its exit code.

The one module that every layer may import; it imports none of them. A message is one line that names the value, the
limit it breaks, and the way out. The command prints it after ``error:`` and no traceback.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class ComaError(Exception):
    """Something failed that the user should hear about in one line (exit code 1)."""

    exit_code: ClassVar[int] = 1


class UsageError(ComaError):
    """The command, a flag or a configuration file is wrong (exit code 2)."""

    exit_code = 2


class DataError(ComaError):
    """The data are missing, damaged or not what they claim to be (exit code 3)."""

    exit_code = 3


class DivergedError(ComaError):
    """Losses, gradients, weights or features are not finite: the training diverged (exit code 4)."""

    exit_code = 4


class Preempted(ComaError):
    """The run was asked to stop, saved a checkpoint and can be started again (exit code 75)."""

    exit_code = 75


def shell_command(*words: object) -> str:
    """Return a command that can be pasted into a shell, every word quoted where it must be.

    A path that begins with a dash is written as ./-path, so that it is not taken for an option.
    """
    dashed = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return shlex.join(dashed)


def did_you_mean(word: str, words: Iterable[str], most: int = 1) -> str:
    """Return "did you mean 'a' or 'b'?" for the `most` closest of `words`, an empty string if none is close."""
    import difflib  # only where something went wrong

    close = difflib.get_close_matches(word, list(words), n=most, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ""
