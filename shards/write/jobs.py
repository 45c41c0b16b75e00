"""What a worker does: one job at a time, given as an object that knows how to run itself."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from typing import Any, Protocol


@dataclass(frozen=True)
class Tally:
    """How far a job is, since its last report."""

    images: int = 0
    source_bytes: int = 0
    set_aside: int = 0


class Job(Protocol):
    """A piece of work that can be sent to another process, or machine."""

    @property
    def name(self) -> str:
        """What it makes, for messages."""

    def run(self, report: Callable[[Tally], None]) -> Any:
        """Do it and return its result; raise a ComaError for what the user should hear."""


@dataclass(frozen=True)
class Done:
    """A job has ended well."""

    result: Any


def serve(connection: "Connection[Any, Any]") -> None:
    """Run the jobs that arrive on `connection` until None does, or the other end has gone.

    Answers with Tally (progress), Done, or the exception that ended the job.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        while (job := connection.recv()) is not None:
            try:
                result = job.run(connection.send)
            except Exception as error:
                connection.send(error)
            else:
                connection.send(Done(result))
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent was killed


class _WithoutPandas(MetaPathFinder):
    """Keeps pyarrow from importing pandas wherever that is installed: a second of every worker, for nothing."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("not needed here", name=fullname)


def serve_at(descriptor: int) -> None:
    """Serve on an inherited file descriptor."""
    sys.meta_path.insert(0, _WithoutPandas())
    serve(Connection(descriptor))
