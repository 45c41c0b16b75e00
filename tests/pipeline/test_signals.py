"""A consumer that is told to stop: at once, whatever the stream is doing, and with its threads ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Server, serving

from coma.pipeline import Stream
from coma.shards.files import folder_at
from coma.shards.manifest import Manifest, read_manifest

CONSUMER = """
import signal, sys, threading
from coma.pipeline import Stream

def leave(number, frame):
    raise SystemExit(75)

signal.signal(signal.SIGTERM, leave)
try:
    with Stream(sys.argv[1], batch_size=8, image_size=64, unit_size=16, workers=1) as stream:
        print("open", flush=True)
        for batch in stream:
            print("batch", flush=True)
finally:
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("coma-")]
    print("left behind:", left, flush=True)
"""
PROMPTLY_S = 15.0  # much less than it would wait for data


@pytest.fixture
def silent(data: Path) -> Iterator[Server]:
    """A store that begins to send a shard and says nothing more."""
    with serving(data.parent) as server:
        server.always = "stall"
        yield server


def coma_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("coma-")]


def start(place: str, cache: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", CONSUMER, place],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COMA_CACHE": str(cache)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


@pytest.mark.parametrize(
    ("number", "waiting"),
    [
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        (signal.SIGTERM, True),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_it_at_once_with_its_threads(
    data: Path, silent: Server, tmp_path: Path, number: signal.Signals, waiting: bool
) -> None:
    place = f"{silent.url}/{data.name}/train" if waiting else str(data)
    process = start(place, tmp_path)
    assert process.stdout is not None
    if waiting:
        while not silent.downloads:
            time.sleep(0.01)
        time.sleep(0.2)
    else:
        assert process.stdout.readline() == "batch\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PROMPTLY_S)
    assert out.splitlines()[-1] == "left behind: []"
    if number == signal.SIGTERM:
        assert (process.returncode, err) == (75, "")
    else:
        assert process.returncode == -signal.SIGINT
        assert err.strip().endswith("KeyboardInterrupt")
        assert err.count("Traceback") == 1


def close_after(stream: Stream, began: Callable[[], bool], delay_s: float) -> list[object]:
    """Close a stream that another thread loops over, some time after that began; return what it was given."""
    taken: list[object] = []
    consumer = threading.Thread(target=lambda: taken.extend(stream), daemon=True)
    consumer.start()
    while not began():
        time.sleep(0)
    time.sleep(delay_s)
    stream.close()
    consumer.join(PROMPTLY_S)
    assert not consumer.is_alive()
    assert not coma_threads()
    return taken


def test_closed_from_another_thread_a_loop_that_waits_comes_to_its_end(
    silent: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path))
    stream = Stream(f"{silent.url}/{data.name}/train", batch_size=8, image_size=64, unit_size=16)
    assert close_after(stream, lambda: bool(silent.downloads), 0.2) == []


def test_closed_by_another_thread_while_it_starts_it_leaves_nothing_running(
    silent: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first `next` makes the threads: a `close` that comes in between must not be lost."""
    monkeypatch.setenv("COMA_CACHE", str(tmp_path))
    remote = read_manifest(folder_at(f"{silent.url}/{data.name}/train"))
    for _ in range(20):
        stream = Stream(remote, batch_size=8, image_size=64, unit_size=16)
        assert close_after(stream, lambda: bool(coma_threads()), 0.0) == []


def test_a_consumer_that_fails_in_a_thread_of_its_own_ends_the_streams(manifest: Manifest) -> None:
    failures: list[KeyError] = []

    def train() -> None:
        try:
            with Stream(manifest, batch_size=8, image_size=64, unit_size=16) as stream:
                next(stream)
                raise KeyError("mine")
        except KeyError as error:
            failures.append(error)

    consumer = threading.Thread(target=train)
    consumer.start()
    consumer.join(PROMPTLY_S)
    assert len(failures) == 1
    assert not coma_threads()
