"""Worker process: runs jobs, each an object that knows how to run itself, one after another."""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from typing import Any, Protocol

from coma.errors import fault_of

REPORT_EVERY_S = 0.1


@dataclass(frozen=True)
class Tally:
    """Progress of a job since its last report, or a sum of such progress."""

    images: int = 0
    source_bytes: int = 0
    set_aside: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        """Return the sum of two tallies."""
        return Tally(
            self.images + other.images, self.source_bytes + other.source_bytes, self.set_aside + other.set_aside
        )


class Job(Protocol):
    """A piece of work that can be sent to another process or machine."""

    @property
    def name(self) -> str:
        """What the job makes, for messages."""

    def run(self, report: Callable[[Tally], None]) -> Any:
        """Do the work and return its result. Raises a ComaError for what the user should read."""


@dataclass(frozen=True)
class Done:
    """The result of a job that ended well."""

    result: Any


class _WithoutPandas(MetaPathFinder):
    """Keeps pyarrow from importing pandas, which would cost each worker a second for nothing."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("not needed here", name=fullname)


def serve(descriptor: int) -> None:
    """Run the jobs that arrive on an inherited connection until a None arrives or the parent has gone.

    Answers with Tally (progress), Done, or the exception that ended the job.
    """
    sys.meta_path.insert(0, _WithoutPandas())
    run_all(descriptor)


def run_all(descriptor: int) -> None:
    """Do what `serve` does, in a process that may import whatever it likes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        while (job := connection.recv()) is not None:
            try:
                result = job.run(connection.send)
            except Exception as error:
                connection.send(_sendable(error))
            else:
                connection.send(Done(result))
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent was killed


def _sendable(error: Exception) -> Exception:
    """Return an error that survives the way to another process: a bug's with its traceback as a note."""
    if isinstance(error, OSError) and type(error).__module__ == "builtins":
        return error  # what the system says, which the parent words
    fault = fault_of(error)
    if fault is not None:
        return fault
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error
