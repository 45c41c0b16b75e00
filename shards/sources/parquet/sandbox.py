"""Sandbox for untrusted parquet files: a process with bounded memory, which a file that lies about its sizes ends."""

import os
import resource
import signal
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coma.errors import ComaError, DataError
from coma.shards.child_process import start_child
from coma.shards.sources.listing import printable
from coma.shards.sources.parquet.read import MEMORY_BYTES, Contents, Rows, copy_rows, read_contents, read_rows

_FUNCTIONS: dict[str, Callable[..., Iterator[Any]]] = {"contents": read_contents, "rows": read_rows, "copy": copy_rows}


class SandboxedReader:
    """Reads parquet files in a process of its own. A context manager: leaving it ends the process."""

    def __init__(self) -> None:
        self._process, self._connection = start_child("coma.shards.sources.parquet.sandbox")

    def __enter__(self) -> "SandboxedReader":
        """Return the reader, whose process runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.wait()

    def contents(self, file: Path) -> Contents:
        """Return what a file says it holds. Raises DataError if it cannot be read, or claims the impossible."""
        contents: Contents
        (contents,) = self._call("contents", file)
        return contents

    def rows(self, file: Path, bytes_column: str | None = None, columns: tuple[str, ...] = ()) -> Generator[Rows]:
        """Read all rows in order, of `bytes_column` only the lengths. Raises DataError if they cannot be read."""
        return self._call("rows", file, bytes_column, columns)

    def copy(
        self,
        file: Path,
        bytes_column: str,
        lengths: npt.NDArray[np.int64],
        wanted: npt.NDArray[np.bool_],
        target: Path,
        ending: bytes = b"",
    ) -> Generator[int]:
        """Copy the bytes of the rows `wanted` [rows] to `target`, then `ending`; yield the bytes copied at a time.

        `lengths` [rows] are the expected lengths, -1 for a null. Raises DataError if the lengths have changed or the
        file cannot be read, ComaError if the target cannot be written, which is whole or absent then.
        """
        return self._call("copy", file, bytes_column, lengths, wanted, target, ending)

    def _call(self, function: str, *arguments: Any) -> Generator[Any]:
        try:
            self._connection.send((function, arguments))
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
            return ComaError(f"the process reading {printable(str(file))} was ended {how} (out of memory?)")
        return DataError(f"{printable(str(file))} is damaged: the process that read it ended {how}")


def serve(descriptor: int) -> None:
    """Serve a SandboxedReader on an inherited connection until the parent has gone.

    Answers a request with everything that the function yields and then None, or with the exception that ended it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most_bytes = _data_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        while True:
            function, arguments = connection.recv()
            try:
                for answer in _FUNCTIONS[function](*arguments):
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
    """Return the bytes of writable memory that this process has mapped (`VmData`, which RLIMIT_DATA limits)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmData"].split()[0]) << 10
