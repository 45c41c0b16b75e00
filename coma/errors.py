"""What can go wrong that is not a bug: each error carries its exit code.

The one module that every layer may import; it imports nothing. A message is one line that names the value, the
limit it breaks, and the way out. The command prints it after ``error:`` and no traceback.
"""

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
    """Training produced too many non-finite losses or gradients (exit code 4)."""

    exit_code = 4


class Preempted(ComaError):
    """The run was asked to stop, saved a checkpoint and can be started again (exit code 75)."""

    exit_code = 75
