"""Remote shards behind real servers that misbehave: all there and byte-equal, or an error that says what failed."""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from servers import Server, bucket_of, serving

from coma.errors import DataError
from coma.pipeline import Stream
from coma.pipeline.cache import ShardCache
from coma.pipeline.download import RetryPolicy
from coma.pipeline.reader import ShardReader, Unreadable
from coma.shards.files import folder_at, without_credentials
from coma.shards.manifest import Manifest, read_manifest

HASTY = RetryPolicy(stall_s=0.5, first_pause_s=0.01)
OPTIONS = {"batch_size": 8, "image_size": 64, "unit_size": 16, "workers": 1, "seed": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(data: Path) -> Iterator[Server]:
    with serving(data.parent) as server:
        yield server


@pytest.fixture
def remote(server: Server, data: Path) -> Manifest:
    return read_manifest(folder_at(f"{server.url}/{data.name}/train"))


@pytest.fixture(scope="module")
def bucket(data: Path) -> Iterator[tuple[Server, str]]:
    """The data set on a real S3 server of this machine, and the proxy before it."""
    with bucket_of(data) as found:
        yield found


def read_all(manifest: Manifest, cache: ShardCache | None = None) -> list[bytes]:
    reader = ShardReader(manifest, cache=cache)
    found = reader.read(np.arange(len(manifest)))
    reader.close()
    assert not any(isinstance(item, Unreadable) for item in found)
    return [bytes(item) for item in found if not isinstance(item, Unreadable)]


def epoch_of(data: Path | str | Manifest) -> tuple[torch.Tensor, torch.Tensor]:
    with Stream(data, **OPTIONS) as stream:
        batches = [next(stream) for _ in range(stream.samples_per_epoch // 8 + 1)]
    return torch.cat([batch.samples for batch in batches]), torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("ranges", [True, False])
def test_an_epoch_over_http_is_the_local_one(server: Server, data: Path, manifest: Manifest, ranges: bool) -> None:
    server.ranges = ranges
    samples, images = epoch_of(f"{server.url}/{data.name}/train")
    expected, local = epoch_of(data)
    assert torch.equal(samples, expected)
    assert torch.equal(images, local)
    assert server.downloads == dict.fromkeys(manifest.shards, 1)


def test_an_epoch_out_of_a_bucket_is_the_local_one(bucket: tuple[Server, str], data: Path, manifest: Manifest) -> None:
    proxy, url = bucket
    proxy.downloads.clear()
    samples, images = epoch_of(url)
    expected, local = epoch_of(data)
    assert torch.equal(samples, expected)
    assert torch.equal(images, local)
    assert proxy.downloads == dict.fromkeys(manifest.shards, 1)


def test_the_index_is_read_through_trouble_from_a_server_that_lists_nothing(
    server: Server, data: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coma.shards.files._RETRY_PAUSES_S", (0.01,) * 4)
    server.unwell = 4
    url = f"{server.url}/{data.name}".replace("//", "//someone:hush@")
    assert read_manifest(folder_at(url)).fingerprint == manifest.fingerprint
    with pytest.raises(DataError, match=r"no sharded data set at .*: no such folder"):
        read_manifest(folder_at(f"{server.url}/nowhere"))
    server.unwell = 1000
    with pytest.raises(DataError, match="the store does not answer: 500") as caught:
        read_manifest(folder_at(url))
    assert "hush" not in str(caught.value)


@pytest.mark.slow
def test_an_index_that_does_not_come_ends_the_wait(server: Server, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coma.shards.files._STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr("coma.shards.files._RETRY_PAUSES_S", (0.01,) * 4)
    server.silent = True
    url = f"{server.url}/{data.name}"
    with pytest.raises(DataError, match=r"the store does not answer: .*[Tt]imeout"):
        read_manifest(folder_at(url))


TROUBLE = ["500", "cut", "stall", "well", "500", "500", "well", "cut", "cut", "500", "stall"]


def test_trouble_that_passes_costs_nothing(server: Server, remote: Manifest, manifest: Manifest) -> None:
    server.faults.extend(TROUBLE)
    assert read_all(remote, ShardCache(remote, retry=HASTY)) == read_all(manifest)
    assert not server.faults


def test_trouble_of_a_bucket_that_passes_costs_nothing(bucket: tuple[Server, str], manifest: Manifest) -> None:
    proxy, url = bucket
    remote = read_manifest(folder_at(url))
    proxy.faults.extend(TROUBLE)
    assert read_all(remote, ShardCache(remote, retry=HASTY)) == read_all(manifest)
    assert not proxy.faults


REASONS = {
    "500": r"5 tries\): the server answers 500",
    "cut": r"5 tries\): .*(payload|bytes)",
    "stall": r"5 tries\): less than 2048 bytes came in 0.5 s",
    "trickle": r"5 tries\): less than 2048 bytes came in 0.5 s",
}


@pytest.mark.parametrize("trouble", REASONS)
def test_trouble_that_stays_is_named(server: Server, remote: Manifest, trouble: str) -> None:
    server.always, server.trickle = trouble, (100, 0.1)
    reader = ShardReader(remote, cache=ShardCache(remote, retry=HASTY))
    with pytest.raises(DataError, match=rf"{remote.shards[0]} cannot be downloaded \({REASONS[trouble]}") as caught:
        reader.read([0])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("trouble", ["500", "stall", "trickle"])
def test_trouble_of_a_bucket_that_stays_is_named(bucket: tuple[Server, str], trouble: str, cache: Path) -> None:
    proxy, url = bucket
    remote = read_manifest(folder_at(url))
    proxy.always = trouble
    try:
        reader = ShardReader(remote, cache=ShardCache(remote, retry=RetryPolicy(stall_s=2, total_s=5)))
        with pytest.raises(DataError, match=f"{url}/train/{remote.shards[0]} cannot be downloaded"):
            reader.read([0])
    finally:
        proxy.always = None
    assert not [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]


@pytest.mark.parametrize("least_bytes_per_s", [10_000, 200_000])
def test_a_link_is_slow_or_at_fault_by_what_it_brings(
    server: Server, remote: Manifest, manifest: Manifest, least_bytes_per_s: float
) -> None:
    """Each piece is more than a file's buffer: something always comes, and it is a matter of how much."""
    server.always, server.trickle = "trickle", (10_000, 0.2)
    retry = RetryPolicy(2, stall_s=0.6, first_pause_s=0.01, least_bytes_per_s=least_bytes_per_s)
    cache = ShardCache(remote, retry=retry)
    if least_bytes_per_s < 50_000:
        os.close(cache.open(0))
    else:
        with pytest.raises(DataError, match=rf"{remote.shards[0]} .*less than 120000 bytes came in 0.6 s"):
            cache.open(0)


@pytest.mark.slow
def test_a_server_that_trickles_ends_a_run_within_a_minute(server: Server, remote: Manifest) -> None:
    server.always = "trickle"
    began_s = time.monotonic()
    with Stream(remote, **OPTIONS) as stream, pytest.raises(DataError, match=r"less than \d+ bytes came"):
        next(stream)
    assert time.monotonic() - began_s < 60


def test_with_the_retry_policy_of_a_run_the_end_comes_within_a_minute() -> None:
    usual = RetryPolicy()
    assert usual.total_s + usual.stall_s <= 60
    assert sum(1.5 * usual.first_pause_s * 2**number for number in range(usual.tries - 1)) < usual.total_s


def test_what_was_said_tells_more_than_the_silence_after_it(server: Server, remote: Manifest) -> None:
    server.faults.extend(["500", "stall", "stall", "stall", "stall"])
    with pytest.raises(DataError, match=r"5 tries\): the server answers 500"):
        ShardCache(remote, retry=HASTY).open(0)


def test_a_server_that_dies_ends_the_stream_with_the_shard(server: Server, remote: Manifest) -> None:
    cache = ShardCache(remote, retry=HASTY)
    reader = ShardReader(remote, cache=cache)
    reader.read(np.flatnonzero(remote.shard_id < 2))
    server.die()
    with pytest.raises(DataError, match=rf"{remote.shards[2]} cannot be downloaded \(5 tries\): .*(onnect|refused)"):
        reader.read(np.flatnonzero(remote.shard_id == 2))


def test_a_shard_that_is_gone_ends_the_stream_at_once(damaged: Path) -> None:
    with serving(damaged.parent) as server:
        remote = read_manifest(folder_at(f"{server.url}/{damaged.name}/train"))
        (damaged / "train" / remote.shards[1]).unlink()
        with (
            Stream(remote, **OPTIONS) as stream,
            pytest.raises(DataError, match=rf"{remote.shards[1]} cannot be downloaded \(1 try\): no such file"),
        ):
            deque(stream, maxlen=0)


def test_a_shard_cut_short_at_the_store_is_named(damaged: Path) -> None:
    with serving(damaged.parent) as server:
        remote = read_manifest(folder_at(f"{server.url}/{damaged.name}/train"))
        path = damaged / "train" / remote.shards[0]
        path.write_bytes(path.read_bytes()[:20_000])
        with pytest.raises(DataError, match=rf"{remote.shards[0]} .*cut short: it has 20000 bytes"):
            ShardReader(remote, cache=ShardCache(remote, retry=HASTY)).read([0])


def test_credentials_are_in_no_message_and_no_log(server: Server, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{server.url}/{data.name}/train".replace("//", "//someone:hush@")
    remote = read_manifest(folder_at(url))
    server.always = "500"
    with pytest.raises(DataError) as caught:
        ShardReader(remote, cache=ShardCache(remote, retry=HASTY)).read([0])
    shown = str(caught.value) + caplog.text
    assert "trying again" in caplog.text
    assert remote.shards[0] in shown
    assert "hush" not in shown
    assert caught.value.__cause__ is None
    assert without_credentials("GET 'https://a:b@host/x?sig=1&k=2' failed") == "GET 'https://host/x' failed"


def test_a_hash_that_fails_has_the_shard_downloaded_again(
    server: Server, remote: Manifest, manifest: Manifest, cache: Path
) -> None:
    read_all(remote)
    (path,) = cache.glob(f"shards/*/{remote.shards[1]}")
    raw = bytearray(path.read_bytes())
    bad = int(np.flatnonzero(remote.shard_id == 1)[3])
    raw[int(remote.offset[bad]) + 50] ^= 0xFF
    path.write_bytes(raw)
    assert read_all(remote) == read_all(manifest)
    assert server.downloads[remote.shards[1]] == 2
    assert server.downloads[remote.shards[0]] == 1


def test_what_is_damaged_at_the_store_is_downloaded_twice_and_then_replaced(damaged: Path) -> None:
    with serving(damaged.parent) as server:
        remote = read_manifest(folder_at(f"{server.url}/{damaged.name}/train"))
        path = damaged / "train" / remote.shards[1]
        raw = bytearray(path.read_bytes())
        bad = np.flatnonzero(remote.shard_id == 1)[2:5]
        for sample in bad:
            raw[int(remote.offset[sample]) + 50] ^= 0xFF
        path.write_bytes(raw)
        for _ in range(2):  # another process after the first
            found = ShardReader(remote).read(np.arange(len(remote)))
            assert np.array_equal([isinstance(item, Unreadable) for item in found].index(True), bad[0])
            assert sum(isinstance(item, Unreadable) for item in found) == len(bad)
        assert server.downloads[remote.shards[1]] == 2
        epoch_of(remote)


READ_ALL = """
import sys
from pathlib import Path
import xxhash
from coma.pipeline.ahead import FetchAhead, Upcoming
from coma.pipeline.cache import ShardCache
from coma.pipeline.order import Planner, SampleOrder
from coma.pipeline.reader import ShardReader, Unreadable
from coma.shards.files import folder_at, without_credentials
from coma.shards.manifest import read_manifest
manifest = read_manifest(folder_at(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    folder, budget_bytes, seed = line.split()
    cache = ShardCache(manifest, Path(folder), int(budget_bytes))
    planner = Planner(SampleOrder(manifest, int(seed)), len(manifest), 4)
    ahead = FetchAhead(cache, Upcoming(planner, manifest, 0), 0)
    reader = ShardReader(manifest, open_files=2, cache=cache)
    seen, position = set(), 0
    while position < len(manifest):
        step = planner.at(position)
        ahead.advance(position)
        for found in reader.read(step.samples):
            assert not isinstance(found, Unreadable), found
            seen.add(xxhash.xxh3_64_intdigest(found))
        position = step.stop_sample
    ahead.close()
    reader.close()
    assert seen == set(manifest.xxh3_64.tolist())
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def two_processes(data: Path) -> Iterator[tuple[Server, Callable[..., None]]]:
    """Two processes that read an epoch whenever they are told the folder and budget of a cache, and a seed."""
    with serving(data.parent) as server, ExitStack() as stack:
        command = [sys.executable, "-c", READ_ALL, f"{server.url}/{data.name}/train"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(2)]
        answers = [process.stdout.readline() for process in running]
        assert answers == ["ready\n"] * 2

        def read_epochs(folder: Path, budget_bytes: int, seeds: tuple[int, int]) -> None:
            server.downloads.clear()
            for process, seed in zip(running, seeds, strict=True):
                process.stdin.write(f"{folder} {budget_bytes} {seed}\n")
                process.stdin.flush()
            assert [process.stdout.readline() for process in running] == ["done\n"] * 2

        yield server, read_epochs


def test_two_processes_download_each_shard_once(two_processes, manifest: Manifest, cache: Path) -> None:
    server, read_epochs = two_processes
    read_epochs(cache, 2**30, (0, 0))
    assert server.downloads == dict.fromkeys(manifest.shards, 1)


def test_two_runs_share_a_cache_too_small_for_either(two_processes, manifest: Manifest, cache: Path) -> None:
    """Each finds its own order disturbed by the other, and both end well; the budget is passed by one shard."""
    server, read_epochs = two_processes
    largest = max((manifest.folder / shard).stat().st_size for shard in manifest.shards)
    most: list[int] = []
    server.watch = lambda: most.append(bytes_in(cache))
    read_epochs(cache, 2 * largest, (0, 1))
    assert 0 < max([*most, bytes_in(cache)]) <= 3 * largest
    assert sum(server.downloads.values()) > len(manifest.shards)


def test_who_waits_for_a_download_that_fails_does_not_begin_again(server: Server, remote: Manifest) -> None:
    server.always = "stall"
    cache = ShardCache(remote, retry=HASTY)
    with ThreadPoolExecutor(1) as other:
        ahead = other.submit(cache.fetch, 0, [])
        while not server.downloads:
            time.sleep(0.01)
        with pytest.raises(DataError, match="less than 2048 bytes came"):
            cache.open(0)
        assert isinstance(ahead.exception(), DataError)
    assert server.downloads[remote.shards[0]] == HASTY.tries


def test_a_stream_can_be_closed_whatever_it_waits_for(server: Server, remote: Manifest) -> None:
    server.always = "stall"
    stream = Stream(remote, **OPTIONS)
    with ThreadPoolExecutor(1) as consumer:
        waiting = consumer.submit(next, stream, None)
        while not server.downloads or stream._finalizer is None:
            time.sleep(0.01)
        stream.close()
        assert waiting.result() is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("coma-read", "coma-fetch"))]


def bytes_in(cache: Path) -> int:
    total = 0
    for path in cache.rglob("*"):
        try:
            total += path.stat().st_size * (path.is_file() and path.parent.name != "locks")
        except FileNotFoundError:
            continue
    return total


def test_local_data_know_no_cache(data: Path, cache: Path) -> None:
    epoch_of(data)
    assert not cache.exists()
