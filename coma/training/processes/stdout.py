"""Keep what libraries print out of stdout, which belongs to the caller and to a command's results."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Iterator

logger = logging.getLogger("coma")


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what Python and C++ code of this process writes to stdout; at log level DEBUG it goes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    verbose = logger.isEnabledFor(logging.DEBUG)
    sink = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        with open(os.dup(sink), "w") as text, contextlib.redirect_stdout(text):  # noqa: PTH123, a descriptor
            yield
    finally:
        _flush_c_streams()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(sink)


def _flush_c_streams() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
