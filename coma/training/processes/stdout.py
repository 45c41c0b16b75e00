"""Keep what libraries print out of stdout, which belongs to the caller and to a command's results."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

logger = logging.getLogger("coma")


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what this thread, and C++ code of this process, writes to stdout; at log level DEBUG it goes to stderr.

    What other threads print arrives.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    verbose = logger.isEnabledFor(logging.DEBUG)
    sink = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        with open(os.dup(sink), "w") as ours, open(os.dup(stdout), "w", 1) as others:  # noqa: PTH123, descriptors
            before = sys.stdout
            stream: Any = _ByThread(ours, others if _is_stdout(before) else before)
            with contextlib.redirect_stdout(stream):
                yield
            stream.__init__(before, before)  # for libraries that keep it
    finally:
        _flush_c_streams()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(sink)


class _ByThread:
    """A stream for the thread that made it, and another one for all others."""

    def __init__(self, ours: TextIO, theirs: TextIO) -> None:
        self._ours, self._theirs, self._thread = ours, theirs, threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ours if threading.get_ident() == self._thread else self._theirs, name)


def _is_stdout(stream: TextIO) -> bool:
    """Whether a stream writes to the process's stdout itself."""
    try:
        return stream.fileno() == 1
    except (AttributeError, OSError, ValueError):
        return False


def _flush_c_streams() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
