"""Worker processes that write shards.

They are started as programs, not by multiprocessing, which would run the user's own script again in each
(spawn) or copy a process that holds threads (fork). They import no torch.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from coma.errors import ComaError
from coma.shards.worker import ShardJob, Tally

log = logging.getLogger(__name__)

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from coma.shards.worker import serve_at; serve_at(int(sys.argv[1]))"
)


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: "Connection[Any, Any]"
    complaints: IO[bytes]
    job: ShardJob | None = None

    def give(self, job: ShardJob | None) -> None:
        self.job = job
        try:
            self.connection.send(job)
        except ConnectionError:
            raise self.died() from None

    def died(self) -> ComaError:
        code = self.process.wait()
        self.complaints.seek(0)
        log.debug("worker's last words: %s", self.complaints.read()[-4000:].decode(errors="replace"))
        how = f"by signal {-code} (out of memory? try fewer --workers)" if code < 0 else f"with code {code}"
        what = f" while writing {self.job.plan.name}" if self.job is not None else ""
        return ComaError(
            f"a worker process ended {how}{what}; the same command goes on from the shards that are done"
        )


def write_shards(jobs: Iterable[ShardJob], workers: int) -> Generator[Tally | ShardJob]:
    """Write shards in `workers` processes; yield progress as it comes, and each job when its shard is done.

    Raises what a worker raised, and ComaError if one died. However it ends (or is closed), no worker is left.
    """
    pending = iter(jobs)
    crew: list[_Worker] = []
    try:
        for job in pending:
            crew.append(_started())
            crew[-1].give(job)
            if len(crew) == workers:
                break
        while busy := {worker.connection: worker for worker in crew if worker.job is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionError):
                    raise worker.died() from None
                if isinstance(message, Exception):
                    raise message
                if message is not None:
                    yield message
                    continue
                assert worker.job is not None
                yield worker.job
                worker.give(next(pending, None))
    finally:
        for worker in crew:
            worker.connection.close()
            if worker.job is not None:
                worker.process.terminate()
        for worker in crew:
            worker.process.wait()
            worker.complaints.close()


def _started() -> _Worker:
    ours, theirs = Pipe()
    complaints = tempfile.TemporaryFile()  # noqa: SIM115  (libtiff and others write to stderr by themselves)
    arguments = [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)]
    process = subprocess.Popen(
        arguments,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=complaints,
        stderr=complaints,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    theirs.close()
    return _Worker(process, ours, complaints)
