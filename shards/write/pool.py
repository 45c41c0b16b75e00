"""Pool of processes that run jobs in parallel, on this machine or on a Ray cluster. They do not import torch."""

import logging
import os
import subprocess
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from coma.errors import ComaError, UsageError
from coma.installed.installation import installation
from coma.shards.child_process import start_child
from coma.shards.write.worker import Done, Job, Tally

log = logging.getLogger(__name__)

WORKER = "coma.shards.write.worker"
"""Module whose `serve` runs jobs that need little to be imported."""


def run_jobs(
    jobs: Iterable[Job],
    workers: int | None,
    engine: str = "processes",
    *,
    limit: str = "--workers",
    module: str = WORKER,
) -> Generator[Tally | tuple[Job, Any]]:
    """Run jobs in parallel; yield progress as it comes, and each job with its result when it is done.

    Raises the exception of a job that failed, and ComaError if a process died. All workers have ended when the
    generator ends or is closed.

    Args:
        jobs: taken one by one, as workers become free.
        workers: how many at a time; None is one a core, of this machine or of the cluster.
        engine: "processes" of this machine, or "ray", on its cluster.
        limit: the flag that makes them fewer, for the error of a process that died.
        module: whose `serve` runs the jobs in a process of this machine.
    """
    if engine == "ray":
        return _run_on_ray(jobs, workers)
    return _run_here(jobs, workers or len(os.sched_getaffinity(0)), limit, module)


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: "Connection[Any, Any]"
    output: IO[bytes]
    limit: str
    job: Job | None = None

    def give(self, job: Job | None) -> None:
        self.job = job
        try:
            self.connection.send(job)
        except ConnectionError:
            raise self.died() from None

    def died(self) -> ComaError:
        code = self.process.wait()
        self.output.seek(0)
        output = self.output.read()[-4000:].decode(errors="replace").strip()
        log.debug("worker's last output: %s", output)
        last = f" ({output.splitlines()[-1]})" if output else ""
        how = f"by signal {-code} (out of memory? try fewer {self.limit})" if code < 0 else f"with code {code}{last}"
        what = f" while writing {self.job.name}" if self.job is not None else ""
        return ComaError(f"a worker process ended {how}{what}; the same command resumes the run")


def _run_here(jobs: Iterable[Job], workers: int, limit: str, module: str) -> Generator[Tally | tuple[Job, Any]]:
    pending = iter(jobs)
    started: list[_Worker] = []
    try:
        for job in pending:
            output = tempfile.TemporaryFile()  # noqa: SIM115  (libtiff and others write to stderr by themselves)
            child = start_child(module, output, number=len(started))
            started.append(_Worker(*child, output, limit))
            started[-1].give(job)
            if len(started) == workers:
                break
        while busy := {worker.connection: worker for worker in started if worker.job is not None}:
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
        for worker in started:
            worker.connection.close()
            if worker.job is not None:
                worker.process.terminate()
        for worker in started:
            worker.process.wait()
            worker.output.close()


def _run_on_ray(jobs: Iterable[Job], workers: int | None) -> Generator[Tally | tuple[Job, Any]]:
    """Run jobs as tasks of the cluster that RAY_ADDRESS names, or else of one that is started on this machine.

    A task that is lost with its machine runs again elsewhere, because no file of it exists before it is whole.
    """
    # Under `uv run` Ray would start each worker by `uv run` as well, in a copy of the current folder.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(f"--engine ray needs Ray: {installation().extra('ray')}") from None
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
                    "resumes from the shards that are done"
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
    return sum(tallies, Tally()), result
