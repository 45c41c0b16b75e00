"""Parquet, read in a process whose memory is bounded: a file that lies about its sizes ends that process, not ours.

The process is a plain program, as those of `coma.shards.write.pool` are; it serves one file after another.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coma.errors import ComaError, DataError
from coma.shards.sources.model import printable
from coma.shards.sources.parquet.rows import MEMORY_BYTES, Contents, Rows, contents, copy, rows

_SERVICES: dict[str, Callable[..., Iterator[Any]]] = {"contents": contents, "rows": rows, "copy": copy}
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from coma.shards.sources.parquet.confined import serve_at; serve_at(int(sys.argv[1]))"
)


class ConfinedReader:
    """Reads parquet files in a process of its own; a context manager, which ends it."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        self._connection = ours
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def __enter__(self) -> "ConfinedReader":
        """Nothing to do: the process started with the object."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.wait()

    def contents(self, file: Path) -> Contents:
        """Tell what a file holds. Raises DataError if it cannot be read, or be true."""
        found: Contents
        (found,) = self._asked("contents", file)
        return found

    def rows(
        self, file: Path, bytes_column: str | None = None, columns: tuple[str, ...] = ()
    ) -> Generator[Rows]:
        """Read all rows, in order: of `bytes_column` the lengths alone. Raises DataError if that cannot be done."""
        return self._asked("rows", file, bytes_column, columns)

    def copy(
        self,
        file: Path,
        bytes_column: str,
        lengths: npt.NDArray[np.int64],
        wanted: npt.NDArray[np.bool_],
        target: Path,
        ending: bytes = b"",
    ) -> Generator[int]:
        """Copy the bytes of the rows `wanted` [rows] to `target`, then `ending`; yield how many bytes at a time.

        `lengths` [rows] is what they must be, -1 for none. Raises DataError if they are not any more or the file
        cannot be read, ComaError if the target cannot be written; it is whole or absent.
        """
        return self._asked("copy", file, bytes_column, lengths, wanted, target, ending)

    def _asked(self, service: str, *arguments: Any) -> Generator[Any]:
        try:
            self._connection.send((service, arguments))
            while (answer := self._connection.recv()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        except (EOFError, ConnectionError):
            raise self._died(arguments[0]) from None

    def _died(self, file: Path) -> ComaError:
        code = self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        if -code in (signal.SIGKILL, signal.SIGTERM):
            return ComaError(
                f"the process that reads {printable(str(file))} was ended {how} (out of memory?)"
            )
        return DataError(f"{printable(str(file))} is damaged: the process that read it ended {how}")


def serve_at(descriptor: int) -> None:
    """Serve a ConfinedReader on an inherited file descriptor until it has gone.

    Answers a request with what the service yields and then None, or the exception that ended it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most_bytes = _data_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        while True:
            service, arguments = connection.recv()
            try:
                for answer in _SERVICES[service](*arguments):
                    connection.send(answer)
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:
                connection.send(error)
            else:
                connection.send(None)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent has gone


def _data_bytes() -> int:
    """Return how much writable memory this process has mapped (`VmData`, what RLIMIT_DATA limits)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmData"].split()[0]) << 10
