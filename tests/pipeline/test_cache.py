"""The cache by itself: what it keeps, for whom it makes room, and what it does with the leavings of the dead."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.errors import DataError, UsageError
from coma.pipeline.ahead import FetchAhead, Upcoming
from coma.pipeline.cache import DEFAULT_BUDGET_BYTES, ShardCache, default_folder
from coma.pipeline.download import RetryPolicy, Stopped, download
from coma.pipeline.order import Planner, SampleOrder
from coma.shards.files import folder_at
from coma.shards.manifest import Manifest, read_manifest

LARGE = 2**30


@pytest.fixture
def remote(data: Path, manifest: Manifest) -> Manifest:
    """The data set in a store, of its own for each test."""
    folder = folder_at(f"memory://{uuid4().hex}/shards")
    for path in (*(manifest.folder / shard for shard in manifest.shards), data / "train/manifest.parquet"):
        (folder / path.name).write_bytes(path.read_bytes())
    return read_manifest(folder)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("shards/*/*"))


def contents(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_a_shard_is_downloaded_once_and_then_read_from_the_disk(
    remote: Manifest, manifest: Manifest, tmp_path: Path
) -> None:
    cache = ShardCache(remote, tmp_path, LARGE)
    expected = (manifest.folder / manifest.shards[1]).read_bytes()
    assert contents(cache.open(1)) == expected
    (remote.folder / remote.shards[1]).unlink()
    assert contents(cache.open(1)) == expected
    assert contents(ShardCache(remote, tmp_path, LARGE).open(1)) == expected
    assert kept(tmp_path) == [remote.shards[1]]
    assert not list((tmp_path / "partial").iterdir())


def test_the_least_recently_used_make_way(remote: Manifest, tmp_path: Path) -> None:
    largest = max((remote.folder / shard).stat().st_size for shard in remote.shards)
    cache = ShardCache(remote, tmp_path, 3 * largest)
    first = cache.open(0)
    for shard in (1, 2):
        os.close(cache.open(shard))
    for shard, ns in ((0, 3), (1, 1), (2, 2)):  # used in this order: 1, 2, 0
        os.utime(next(tmp_path.glob(f"shards/*/{remote.shards[shard]}")), ns=(ns, ns))
    os.close(cache.open(0))
    os.close(cache.open(3))
    assert remote.shards[1] not in kept(tmp_path)
    assert {remote.shards[0], remote.shards[3]} <= set(kept(tmp_path))
    for shard in range(1, len(remote.shards)):
        os.close(cache.open(shard))
    assert remote.shards[0] not in kept(tmp_path)
    assert contents(first) == (remote.folder / remote.shards[0]).read_bytes()  # what is open goes on


def test_a_shard_larger_than_the_budget_is_alone(remote: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(remote, tmp_path, 1)
    for shard in range(len(remote.shards)):
        os.close(cache.open(shard))
        assert kept(tmp_path) == [remote.shards[shard]]


def test_fetching_ahead_takes_no_room_from_what_is_needed(remote: Manifest, tmp_path: Path) -> None:
    largest = max((remote.folder / shard).stat().st_size for shard in remote.shards)
    cache = ShardCache(remote, tmp_path, 2 * largest)
    assert cache.fetch(0, keep=[0, 1, 2])
    assert cache.fetch(1, keep=[0, 1, 2])
    assert not cache.fetch(2, keep=[0, 1, 2])
    assert kept(tmp_path) == sorted([remote.shards[0], remote.shards[1]])
    assert cache.fetch(2, keep=[1, 2])
    assert remote.shards[2] in kept(tmp_path)
    assert remote.shards[1] in kept(tmp_path)


def test_room_is_shared_with_other_data_sets(remote: Manifest, tmp_path: Path) -> None:
    other = replace(remote, fingerprint="0123456789abcdef")
    os.close(ShardCache(other, tmp_path, LARGE).open(0))
    os.close(ShardCache(remote, tmp_path, 1).open(1))
    assert kept(tmp_path) == [remote.shards[1]]


KILLED = """
import os, sys, signal
from pathlib import Path
from coma.pipeline import cache, download
from coma.shards.files import folder_at
from coma.shards.manifest import read_manifest
from upath import UPath
manifest = read_manifest(Path(sys.argv[1]))
def killed(source, fresh, *rest):
    fresh().write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
cache.download = killed
cache.ShardCache(manifest, Path(sys.argv[2]), 2**30).open(0)
"""


def test_what_a_killed_process_leaves_is_removed(data: Path, remote: Manifest, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, data, tmp_path], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert len([path for path in tmp_path.glob("partial/*/*") if path.is_file()]) == 1
    os.close(ShardCache(remote, tmp_path, LARGE).open(1))
    assert not list((tmp_path / "partial").iterdir())
    assert contents(ShardCache(remote, tmp_path, LARGE).open(0)) == ((remote.folder / remote.shards[0]).read_bytes())


def test_who_waits_for_another_process_can_be_stopped(remote: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(remote, tmp_path, LARGE)
    lock = os.open(tmp_path / "locks" / cache._name(0), os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(0.2, cache.stop).start()
    with pytest.raises(Stopped):
        cache.open(0)
    os.close(lock)


def test_who_waits_for_a_process_that_hangs_says_so(
    remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coma.pipeline.cache._HELD_S", 0.2)
    cache = ShardCache(remote, tmp_path, LARGE)
    lock = os.open(tmp_path / "locks" / cache._name(0), os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(DataError, match=rf"{remote.shards[0]}: another process .* without getting on"):
        cache.open(0)
    os.close(lock)


def test_a_cached_shard_that_was_cut_is_downloaded_again(remote: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(remote, tmp_path, LARGE)
    os.close(cache.open(0))
    (path,) = tmp_path.glob("shards/*/*")
    os.truncate(path, 1000)
    assert contents(cache.open(0)) == (remote.folder / remote.shards[0]).read_bytes()


def test_defaults(remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMA_CACHE", raising=False)
    monkeypatch.delenv("COMA_CACHE_BYTES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg/coma"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/coma"
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert 0 < ShardCache(remote).budget_bytes <= min(DEFAULT_BUDGET_BYTES, free)
    monkeypatch.setenv("COMA_CACHE_BYTES", "1.5GB")
    assert ShardCache(remote).budget_bytes == 1_500_000_000
    monkeypatch.setenv("COMA_CACHE_BYTES", "plenty")
    with pytest.raises(UsageError, match="COMA_CACHE_BYTES plenty is not a size"):
        ShardCache(remote)
    monkeypatch.setenv("COMA_CACHE_BYTES", "0")
    with pytest.raises(UsageError, match="give COMA_CACHE_BYTES"):
        ShardCache(remote)


def test_a_folder_that_cannot_be_names_the_way_out(remote: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file.* cannot be used: .*; give another with COMA_CACHE"):
        ShardCache(remote, tmp_path / "file")


def test_a_full_disk_names_the_way_out(remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coma.pipeline.cache.download", full)
    with pytest.raises(DataError, match=r"No space left on device.*COMA_CACHE_BYTES.*COMA_CACHE"):
        ShardCache(remote, tmp_path, LARGE).open(0)
    assert not list((tmp_path / "partial").iterdir())


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    start=st.integers(0, 500),
    stride=st.integers(1, 60),
    training=st.booleans(),
)
def test_the_shards_that_come_are_named_in_the_order_of_their_first_need(
    lengths: list[int], seed: int, start: int, stride: int, training: bool
) -> None:
    shard_id = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    count = len(shard_id)
    planner = Planner(SampleOrder(lengths, seed, window_shards=3) if training else None, count, 7)
    manifest = type("M", (), {"shard_id": shard_id})()
    upcoming = Upcoming(planner, manifest, start, look_ahead=50)
    for position in range(start, start + 5 * stride, stride):
        if not training and position >= count:
            assert upcoming.at(position) == []
            continue
        step = replace(planner, batch_size=min(50, 2 * count)).at(position)
        assert step is not None
        needed = set(shard_id[step.samples].tolist())
        assert needed <= set(upcoming.at(position))
    fresh = Upcoming(planner, manifest, 0, look_ahead=50).at(0)
    step = replace(planner, batch_size=count).at(0)
    assert step is not None
    order = list(dict.fromkeys(shard_id[step.samples].tolist()))
    assert fresh == order[: len(fresh)]


def test_fetching_ahead_fills_the_cache_and_ends(remote: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(remote, tmp_path, LARGE)
    planner = Planner(SampleOrder(remote, 0), len(remote), 8)
    ahead = FetchAhead(cache, Upcoming(planner, remote, 0), 0)
    while len(kept(tmp_path)) < len(remote.shards):
        time.sleep(0.01)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("coma-fetch")]


@pytest.mark.parametrize(("budget_bytes", "told"), [(1000, True), (LARGE, False)])
def test_a_cache_too_small_for_what_is_needed_next_says_so(
    remote: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture, budget_bytes: int, told: bool
) -> None:
    planner = Planner(SampleOrder(remote, 0), len(remote), 8)
    FetchAhead(ShardCache(remote, tmp_path, budget_bytes), Upcoming(planner, remote, 0), 0).close()
    assert ("give it room with COMA_CACHE_BYTES" in caplog.text) == told


def test_what_fails_ahead_fails_where_it_is_needed(
    remote: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (remote.folder / remote.shards[0]).unlink()
    cache = ShardCache(remote, tmp_path, LARGE, RetryPolicy(first_pause_s=0.01))
    planner = Planner(SampleOrder(remote, 0), len(remote), 8)
    ahead = FetchAhead(cache, Upcoming(planner, remote, 0), 0)
    while len(kept(tmp_path)) < len(remote.shards) - 1 or "fetching ahead" not in caplog.text:
        time.sleep(0.01)
    with pytest.raises(DataError, match=f"{remote.shards[0]} cannot be downloaded"):
        cache.open(0)
    ahead.close()


def test_room_is_made_while_other_downloads_come_and_go(remote: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(remote, tmp_path, LARGE)
    others = [tmp_path / "partial" / f"other.{number}" for number in range(100)]
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            for room in others:
                room.mkdir()
                (room / "part").touch()
            for room in others:
                shutil.rmtree(room)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(100):
            assert cache.fetch(0, set())
            (tmp_path / "shards" / remote.fingerprint / remote.shards[0]).unlink()
    finally:
        done.set()
        thread.join()


def other_of(remote: Manifest) -> Manifest:
    """As if it were another data set."""
    return replace(remote, fingerprint="0123456789abcdef")


def use(cache: ShardCache, *shards: int) -> None:
    for shard in shards:
        os.close(cache.open(shard))


def test_leavings_go_even_if_nothing_is_downloaded_any_more(data: Path, remote: Manifest, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, data, tmp_path], capture_output=True, check=False)
    assert list((tmp_path / "partial").iterdir())
    ShardCache(remote, tmp_path, LARGE)
    assert not list((tmp_path / "partial").iterdir())


def test_what_is_not_the_caches_is_left_alone(remote: Manifest, tmp_path: Path) -> None:
    mine = [
        tmp_path / "shards/photos/train-000.tar",
        tmp_path / "shards/notes",
        tmp_path / "partial/notes.txt",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    use(ShardCache(remote, tmp_path, 1), 0, 1)
    assert [path.read_bytes() for path in mine] == [b"mine"] * 3
    assert kept(tmp_path) == sorted([remote.shards[1], "train-000.tar"])


def test_a_cache_that_has_everything_needs_no_lock(remote: Manifest, tmp_path: Path) -> None:
    """It may be another user's, or on a disk that is mounted for reading only."""
    cache = ShardCache(remote, tmp_path, LARGE)
    use(cache, 0)
    shutil.rmtree(tmp_path / "locks")
    (tmp_path / "locks").touch()  # no lock can be had, root or not
    assert cache.fetch(0, keep=[])
    use(cache, 0)
    for needed in (lambda: cache.open(1), lambda: cache.fetch(1, keep=[])):
        with pytest.raises(DataError, match=r"cache folder .* cannot take shards .* with COMA_CACHE"):
            needed()


def test_a_clock_that_was_ahead_keeps_nothing_for_good(remote: Manifest, tmp_path: Path) -> None:
    largest = max((remote.folder / shard).stat().st_size for shard in remote.shards)
    use(ShardCache(remote, tmp_path, LARGE), 0, 1)
    tomorrow = time.time() + 86400
    os.utime(next(tmp_path.glob(f"shards/*/{remote.shards[0]}")), (tomorrow, tomorrow))
    use(ShardCache(remote, tmp_path, 2 * largest), 2)
    assert kept(tmp_path) == sorted([remote.shards[1], remote.shards[2]])


def test_a_full_disk_makes_the_least_recently_used_go(
    remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(remote, tmp_path, LARGE)
    use(cache, 0, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("coma.pipeline.cache.shutil.disk_usage", lambda _: usage._replace(free=1000))
    use(cache, 2)
    assert len(kept(tmp_path)) < 3
    assert {remote.shards[2]} <= set(kept(tmp_path)) <= {remote.shards[1], remote.shards[2]}


def test_nothing_makes_way_for_what_cannot_come(remote: Manifest, tmp_path: Path) -> None:
    use(ShardCache(other_of(remote), tmp_path, LARGE), 0, 1)
    assert not ShardCache(remote, tmp_path, 1).fetch(2, keep=[])
    assert len(kept(tmp_path)) == 2


def test_a_small_budget_is_served_whatever_a_large_one_downloads(
    remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that always has a download under way does not keep another from ever beginning one."""
    under_way, ended = threading.Event(), threading.Event()

    def slow(source: Path, *rest: Any) -> Path:
        if source.name != remote.shards[1]:
            under_way.set()
            ended.wait(30)
        return download(source, *rest)

    monkeypatch.setattr("coma.pipeline.cache.download", slow)
    large = ShardCache(other_of(remote), tmp_path, LARGE)
    thread = threading.Thread(target=large.fetch, args=(0, []), daemon=True)
    thread.start()
    under_way.wait()
    small = ShardCache(remote, tmp_path, 1)
    threading.Timer(5, small.stop).start()
    try:
        use(small, 1)
        assert thread.is_alive()
    finally:
        ended.set()
        thread.join()
