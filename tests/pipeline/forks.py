"""A stream, and the lock of its cache, in forked processes; `test_stream_library.py` runs this file in a fresh one."""

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run

import pytest
import torch
from servers import serving
from torch.utils.data import DataLoader

from coma.errors import UsageError
from coma.pipeline import Batch, Stream
from coma.shards.locks import file_lock

OPTIONS = {"batch_size": 8, "image_size": 64, "unit_size": 16, "workers": 2, "seed": 3}
HANGS_S = 60.0


def same(ours: Batch, theirs: Batch) -> bool:
    return torch.equal(ours.images, theirs.images) and torch.equal(ours.units, theirs.units)


@pytest.fixture(scope="module")
def expected(data: Path) -> list[Batch]:
    with Stream(data, **OPTIONS) as stream:
        return [next(stream) for _ in range(6)]


@pytest.fixture
def stream(data: Path) -> Iterator[Stream]:
    with Stream(data, **OPTIONS) as stream:
        yield stream


def in_fork(act: Callable[[], object], end: Callable[[], object] = lambda: os._exit(0)) -> int:
    """Exit status of a forked child that acts; it must not hang."""
    child = os.fork()
    if child == 0:
        try:
            act()
            end()
        finally:
            os._exit(1)
    until = time.monotonic() + HANGS_S
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


def check(stream: Stream, batches: list[Batch]) -> None:
    for batch in batches:
        assert same(next(stream), batch)


def refuse(stream: Stream) -> None:
    with pytest.raises(UsageError, match="spawn"):
        next(stream)


def test_a_child_forked_before_the_first_batch_goes_on_by_itself(stream: Stream, expected: list[Batch]) -> None:
    assert in_fork(lambda: check(stream, expected)) == 0
    check(stream, expected)


def test_a_child_forked_from_a_running_stream_is_refused_in_a_line(
    stream: Stream, data: Path, expected: list[Batch]
) -> None:
    check(stream, expected[:2])
    assert in_fork(lambda: refuse(stream)) == 0
    assert in_fork(lambda: refuse(Stream(data, **OPTIONS))) == 0
    check(stream, expected[2:])


FORKS_BESIDE_A_THREAD = """
import os, sys, threading, time
from coma.errors import UsageError
from coma.pipeline import Stream

stream = Stream(sys.argv[1], batch_size=8, image_size=64, unit_size=16, workers=2)
threading.Thread(target=lambda: [None for _ in stream], daemon=True).start()
while not stream.consumed:
    time.sleep(0.01)
for _ in range(5):
    child = os.fork()
    if child == 0:
        try:
            next(stream)
        except UsageError as error:
            stream.close()
            os._exit(0 if "spawn" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


def test_forks_while_another_thread_takes_batches(data: Path) -> None:
    """In a process of its own: at a fork, libraries that other tests loaded may hold locks that nobody releases."""
    run([sys.executable, "-c", FORKS_BESIDE_A_THREAD, str(data)], check=True, timeout=HANGS_S)


def test_a_forked_child_may_close_or_forget_it_and_exits_quietly(
    stream: Stream, capfd: pytest.CaptureFixture[str]
) -> None:
    next(stream)
    assert in_fork(stream.close) == 0
    code = (
        "import os, sys\nfrom coma.pipeline import Stream\n"
        f"s = Stream({str(stream.manifest.folder)!r}, batch_size=8, image_size=64, unit_size=16)\nnext(s)\n"
        "child = os.fork()\n"
        "if child == 0: sys.exit(0)\n"
        "sys.exit(os.waitpid(child, 0)[1])\n"
    )
    quiet = ["-W", "ignore::DeprecationWarning"]  # Python 3.12's, of forks beside threads
    done = in_fork(lambda: None, lambda: os.execv(sys.executable, [sys.executable, *quiet, "-c", code]))
    assert (done, capfd.readouterr().err) == (0, "")


def test_a_forked_child_reads_remote_data(
    data: Path, expected: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path))
    with serving(data.parent) as server, Stream(f"{server.url}/{data.name}/train", **OPTIONS) as stream:
        assert in_fork(lambda: check(stream, expected[:2])) == 0
        check(stream, expected[:2])
        with pickle.loads(pickle.dumps(stream)) as copied:
            check(copied, expected[2:4])


def _take(stream: Stream, count: int) -> None:
    with stream:
        samples = [next(stream).samples.tolist() for _ in range(count)]
    assert samples == [stream.plan(stream.consumed // 8 - count + 1 + at).samples.tolist() for at in range(count)]


def test_a_process_is_given_the_stream(stream: Stream) -> None:
    process = multiprocessing.get_context("fork").Process(target=_take, args=(stream, 2))
    process.start()
    process.join(HANGS_S)
    assert process.exitcode == 0


def test_workers_of_a_data_loader_are_refused_in_words(stream: Stream) -> None:
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(UsageError, match="num_workers=0"):
        next(iter(loader))


def test_a_forked_child_holds_no_lock(tmp_path: Path) -> None:
    """As a user's own worker processes would, which outlive the download that was under way at their start."""
    with file_lock(tmp_path / "lock") as lock:
        assert lock is not None
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with file_lock(tmp_path / "lock") as lock:
            assert lock is not None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
