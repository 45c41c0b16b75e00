"""Processes that run jobs, here or on a Ray cluster.

Ours are started as programs, not by multiprocessing, which would run the user's own script again in each
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

from coma.errors import ComaError, UsageError
from coma.shards.write.jobs import Done, Job, Tally

log = logging.getLogger(__name__)

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from coma.shards.write.jobs import serve_at; serve_at(int(sys.argv[1]))"
)


def run_jobs(
    jobs: Iterable[Job], workers: int | None, engine: str = "processes"
) -> Generator[Tally | tuple[Job, Any]]:
    """Run jobs side by side; yield progress as it comes, and each job with its result when it is done.

    Raises what a job raised, and ComaError if a process died. However it ends (or is closed), no worker of ours
    is left.

    Args:
        jobs: taken one by one, as workers become free.
        workers: how many at a time; None is one a core, of this machine or of the cluster.
        engine: "processes" of this machine, or "ray", on its cluster.
    """
    return _run_on_ray(jobs, workers) if engine == "ray" else _run_here(jobs, workers or cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: "Connection[Any, Any]"
    complaints: IO[bytes]
    job: Job | None = None

    def give(self, job: Job | None) -> None:
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
        what = f" while writing {self.job.name}" if self.job is not None else ""
        return ComaError(
            f"a worker process ended {how}{what}; the same command goes on from the shards that are done"
        )


def _run_here(jobs: Iterable[Job], workers: int) -> Generator[Tally | tuple[Job, Any]]:
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
                if isinstance(message, Tally):
                    yield message
                    continue
                assert isinstance(message, Done)
                assert worker.job is not None
                yield worker.job, message.result
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


def _run_on_ray(jobs: Iterable[Job], workers: int | None) -> Generator[Tally | tuple[Job, Any]]:
    """Run jobs as tasks of the cluster that RAY_ADDRESS names, or of one of this machine's own.

    A task that is lost with its machine runs again elsewhere: nothing of it stands before it is whole.
    """
    # Under `uv run` Ray would start each worker by `uv run` as well, in a copy of the current folder.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'coma[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers, log_to_driver=False)
    task = ray.remote(_run_counted)
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    most = workers or max(1, int(resources.get("CPU", 1)))
    pending = iter(jobs)
    running: dict[Any, Job] = {}
    try:
        while True:
            while len(running) < most and (job := next(pending, None)) is not None:
                running[task.remote(job)] = job
            if not running:
                return
            (reference,), _ = ray.wait(list(running))
            job = running.pop(reference)
            try:
                tally, result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, Exception) else ComaError(str(error)) from None
            except ray.exceptions.RayError as error:
                raise ComaError(
                    f"Ray lost a task while writing {job.name}: {str(error).splitlines()[0]}; the same command "
                    "goes on from the shards that are done"
                ) from error
            yield tally
            yield job, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _run_counted(job: Job) -> tuple[Tally, Any]:
    tallies: list[Tally] = []
    result = job.run(tallies.append)
    images, source_bytes, set_aside = (
        sum(getattr(tally, name) for tally in tallies) for name in ("images", "source_bytes", "set_aside")
    )
    return Tally(images, source_bytes, set_aside), result
