"""What may stand in a shard's place, before a stream begins and under a running one: an end that says why, and soon."""

import errno
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from coma.errors import DataError
from coma.pipeline import Stream
from coma.pipeline.reader import ShardReader, Unreadable
from coma.shards.manifest import Manifest, read_manifest

OPTIONS = {"batch_size": 8, "image_size": 64, "unit_size": 16, "workers": 1, "seed": 4}

pytestmark = pytest.mark.timeout(60)


def vanish(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    """Nobody ever writes to it: whoever opens it in the usual way waits for ever."""
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def other_bytes(path: Path) -> None:
    """Another file of the same size, as a copy that failed on a disk full of holes leaves."""
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))


def overwritten(path: Path) -> None:
    """The same file, never shorter on the way, so that it changes for those too who have it open."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def unreadable(path: Path) -> None:
    """A file that opens, and whose every read fails with EIO, as on a broken disk: addresses nothing is mapped at."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


CUT_SHORT = r"shard .*{shard} is cut short: .*; copy the shard again"
NOT_A_FILE = r"shard .*{shard} cannot be opened \(it is not a file\); copy it again"
LOST: dict[Callable[[Path], None], str] = {
    vanish: r"shard .*{shard} cannot be opened \(No such file or directory\); copy it again",
    cut: CUT_SHORT,
    empty: CUT_SHORT,
    folder: NOT_A_FILE,
    pipe: NOT_A_FILE,
    device: NOT_A_FILE,
}
PAST_THE_BUDGET = "^11 different samples .* fault_budget=10; find them with: coma verify"
BAD = dict.fromkeys((other_bytes, overwritten, unreadable), PAST_THE_BUDGET)


def take(stream: Stream) -> None:
    """Several epochs, or until it fails."""
    deque(islice(stream, 100), maxlen=0)


def largest(manifest: Manifest) -> str:
    """A shard of more samples than the budget."""
    assert manifest.shard_lengths.max() > 10
    return manifest.shards[int(manifest.shard_lengths.argmax())]


@pytest.mark.parametrize("damage", [*LOST, *BAD])
def test_under_a_running_stream_whose_shards_are_not_open_yet(damaged: Path, damage: Callable[[Path], None]) -> None:
    manifest = read_manifest(damaged)
    shard = largest(manifest)
    damage(manifest.folder / shard)
    with Stream(manifest, **OPTIONS) as stream:
        with pytest.raises(DataError, match={**LOST, **BAD}[damage].format(shard=shard)) as caught:
            take(stream)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [cut, empty, overwritten])
def test_under_a_running_stream_that_has_them_open(damaged: Path, damage: Callable[[Path], None]) -> None:
    manifest = read_manifest(damaged)
    shard = largest(manifest)
    with Stream(manifest, **OPTIONS) as stream:
        for _ in range(len(manifest) // 8 + 1):  # an epoch: every shard has been read from
            next(stream)
        damage(manifest.folder / shard)
        with pytest.raises(DataError, match={**LOST, **BAD}[damage].format(shard=shard)):
            take(stream)


@pytest.mark.parametrize("damage", [vanish, folder, pipe, other_bytes])
def test_a_shard_that_is_open_is_read_to_its_end_whatever_takes_its_name(
    damaged: Path, damage: Callable[[Path], None]
) -> None:
    manifest = read_manifest(damaged)
    with closing(ShardReader(manifest)) as reader:
        before = reader.read(np.arange(len(manifest)))
        damage(manifest.folder / largest(manifest))
        after = reader.read(np.arange(len(manifest)))
    assert not any(isinstance(data, Unreadable) for data in before)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("damage", [*LOST, *BAD])
def test_before_a_stream_begins(damaged: Path, damage: Callable[[Path], None]) -> None:
    shard = largest(read_manifest(damaged))
    damage(damaged / "train" / shard)
    with pytest.raises(DataError) as caught, Stream(damaged, **OPTIONS) as stream:
        take(stream)
    assert shard in str(caught.value) or caught.match(BAD[damage])
    assert "\n" not in str(caught.value)


def test_a_manifest_with_an_offset_past_all_files_costs_that_sample(damaged: Path) -> None:
    """Offset and size add up to a negative number, which no file is too short for."""
    manifest = read_manifest(damaged)
    offset = manifest.offset.copy()
    offset[5] = 2**63 - 1
    manifest = replace(manifest, offset=offset)
    with closing(ShardReader(manifest)) as reader:
        found = reader.read([4, 5, 6])
    assert [isinstance(data, Unreadable) for data in found] == [False, True, False]


def test_a_read_that_fails_says_how(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    unreadable(manifest.folder / manifest.shards[0])
    with closing(ShardReader(manifest)) as reader:
        (found,) = reader.read([0])
    assert found == Unreadable(f"read failed: {os.strerror(errno.EIO)}")


SHRINKING = """
import os, sys
from pathlib import Path
from threading import Thread
from coma.errors import DataError
from coma.pipeline import Stream
from coma.shards.manifest import read_manifest
manifest = read_manifest(Path(sys.argv[1]))
paths = [manifest.folder / shard for shard in manifest.shards]
whole = [path.read_bytes() for path in paths]
for _ in range(6):
    def shrink():
        for size in range(max(map(len, whole)), 0, -4096):
            for path in paths:
                if path.stat().st_size > size:
                    os.truncate(path, size)
    thread = Thread(target=shrink)
    try:
        with Stream(manifest, batch_size=8, image_size=64, unit_size=16, workers=1) as stream:
            next(stream)
            thread.start()
            for _ in range(1000):
                next(stream)
        sys.exit("no error")
    except DataError as error:
        assert "cut short" in str(error), error
    thread.join()
    for path, data in zip(paths, whole):
        path.write_bytes(data)
print("alive")
"""


def test_shards_that_shrink_while_they_are_read_are_no_bus_error(damaged: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SHRINKING, str(damaged)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
