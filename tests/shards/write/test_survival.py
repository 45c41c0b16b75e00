"""A run goes on from any death, and nothing half-written ever stands under a name that counts."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_shards import RUN, begin_sharding, killing_at, shard_until_killed

from coma.errors import ComaError, DataError, UsageError
from coma.shards.check.verify import verify
from coma.shards.manifest import read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

SMALL = ShardOptions(shard_bytes=20_000, workers=1)
TWO_WORKERS = '{"shard_bytes": 20000, "workers": 2}'


def run(source, out, workers=1, **kw):
    return begin_sharding(source, out, options={"shard_bytes": 20_000, "workers": workers}, **kw)


@pytest.fixture(scope="module")
def pets(tmp_path_factory, tree, contents):
    """A source and the data set that an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("pets")
    source = tree(folder / "pets")
    (source / "cat/bad.jpg").write_bytes(b"bad")
    shard(source, folder / "out", SMALL)
    return source, contents(folder / "out")


# In a worker: 1 index, 2 part, 3 tar of the first shard, 4 ... the second; in the parent: 1 plan, 2 manifest,
# 3 quarantine, 4 _info.json.
INSTANTS = ["worker:3", "worker:5", "parent:2", "parent:4"]
MORE_INSTANTS = ["worker:1", "worker:2", "worker:4", "worker:6", "parent:1", "parent:3"]


@pytest.mark.parametrize(
    "instant", [*INSTANTS, *(pytest.param(instant, marks=pytest.mark.slow) for instant in MORE_INSTANTS)]
)
def test_killed_at_any_instant_a_run_goes_on(pets, tmp_path, contents, instant):
    source, expected = pets
    out = tmp_path / "out"
    shard_until_killed(source, out, instant, shard_bytes=20_000, workers=1)
    with pytest.raises(DataError):
        read_manifest(out)
    standing = {path: path.stat().st_ino for path in out.rglob("coma-*.tar")}
    assert {path.name: expected[f"train/{path.name}"] for path in standing} == {
        p.name: p.read_bytes() for p in standing
    }
    summary = shard(source, out, SMALL)
    assert contents(out) == expected
    assert {path: path.stat().st_ino for path in standing} == standing  # kept, not written again
    assert summary.kept_shards == len(standing)
    assert (summary.found, summary.kept, summary.set_aside) == (19, 18, 1)


def test_killed_by_the_clock_with_two_workers(pets, tmp_path, contents):
    source, expected = pets
    out = tmp_path / "out"
    process = run(source, out, workers=2)
    while not list(out.rglob("*.tar")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    shard(source, out, SMALL)
    assert contents(out) == expected


def test_interrupted_it_leaves_no_temporary_and_no_worker(tree, tmp_path):
    source = tree(tmp_path / "pets", per_class=60, classes=("cat", "dog"))
    out = tmp_path / "out"
    process = run(source, out, workers=2, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not list(out.rglob("*.tar")) and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all of them
    _, words = process.communicate(timeout=20)
    assert words.strip().endswith("KeyboardInterrupt")
    assert words.count("Traceback") == 1  # the parent's; the workers are quiet
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not list(out.rglob("*.coma-tmp"))
    assert not (out / "_info.json").exists()
    summary = shard(source, out, SMALL)
    assert (summary.found, summary.kept) == (120, 120)
    assert 0 < summary.kept_shards < summary.shards
    assert not verify(out).problems


def test_a_limit_on_file_sizes_is_one_line_and_the_run_goes_on(pets, tmp_path, contents):
    source, expected = pets
    out = tmp_path / "out"
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))" + RUN
    process = subprocess.run(
        [sys.executable, "-c", limited, str(source), str(out), TWO_WORKERS],
        capture_output=True,
        text=True,
        check=False,
    )
    last = process.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"coma\.errors\.ComaError: cannot write .*\.tar: File too large; .* resumes from them", last)
    assert not list(out.rglob("*.tar"))
    assert not list(out.rglob("*.coma-tmp"))
    shard(source, out, SMALL)
    assert contents(out) == expected


FULL_DISK = """
set -e
mkdir "$2"
mount -t tmpfs -o size=80k none "$2"
mkdir "$2/out"
"$PYTHON" -c "$RUN" "$1" "$2/out" "$OPTIONS" 2> "$3" && exit 9
find "$2/out" -name '*.tar' -o -name '*.coma-tmp' > "$4"
mount -o remount,size=8m "$2"
"$PYTHON" -c "$RUN" "$1" "$2/out" "$OPTIONS"
cp -r "$2/out" "$5"
"""


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_space(pets, tmp_path, contents):
    source, expected = pets
    names = [str(source), *(str(tmp_path / name) for name in ("disk", "words", "standing", "copy"))]
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    environment = {**os.environ, "PYTHON": sys.executable, "RUN": RUN, "OPTIONS": TWO_WORKERS}
    done = subprocess.run(
        [*unshare, "sh", "-c", FULL_DISK, "sh", *names], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    last = Path(names[2]).read_text().strip().splitlines()[-1]
    assert re.fullmatch(
        r"coma\.errors\.ComaError: cannot write .*: No space left on device; finished shards are kept.*", last
    )
    standing = Path(names[3]).read_text().split()
    assert 0 < len(standing) < sum(name.endswith(".tar") for name in expected)
    assert not [name for name in standing if name.endswith(".coma-tmp")]
    assert contents(Path(names[4])) == expected


@pytest.mark.slow
def test_killed_at_twenty_random_instants(pets, tmp_path, contents):
    source, expected = pets
    begun_s = time.monotonic()
    assert run(source, tmp_path / "whole", workers=2).wait() == 0
    whole_s = time.monotonic() - begun_s
    chance = random.Random(0)
    for number in range(20):
        out = tmp_path / f"out-{number}"
        process = run(source, out, workers=2, start_new_session=True)
        time.sleep(chance.uniform(0.2, 1.05) * whole_s)
        if chance.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # its workers find out by themselves
        process.wait()
        shard(source, out, SMALL)
        assert contents(out) == expected, f"kill {number}"


def test_a_worker_that_dies_is_one_line(pets, tmp_path, monkeypatch):
    source, _ = pets
    for name, value in killing_at("worker:2", tmp_path / "hook", worker_alone=True).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ComaError, match=r"a worker process ended by signal 9 .* while writing coma-train-000000"):
        shard(source, tmp_path / "out", SMALL)


def test_a_second_run_into_the_same_folder_is_refused(pets, tmp_path):
    source, _ = pets
    seen = []

    def meddle(now):
        if now.total_images and not seen:
            seen.append(now)
            with pytest.raises(UsageError, match="another `coma shard` is writing"):
                shard(source, tmp_path / "out", SMALL)

    shard(source, tmp_path / "out", SMALL, meddle)
    assert seen


def test_a_source_that_changes_under_way_is_set_aside(tree, tmp_path):
    source = tree(tmp_path / "pets")

    def meddle(now):
        if now.total_images and not now.images:
            (source / "cat/000.JPEG").unlink()
            with (source / "dog/000.JPEG").open("ab") as file:
                file.write(b"more")

    summary = shard(source, tmp_path / "out", SMALL, meddle)
    assert summary.reasons == {"changed": 1, "vanished": 1}


def test_a_source_written_to_under_way_is_named_even_at_the_same_size(tree, tmp_path):
    source = tree(tmp_path / "pets")

    def meddle(now):
        if now.total_images and not now.images:
            file = source / "cat/000.JPEG"
            os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))

    summary = shard(source, tmp_path / "out", SMALL, meddle)
    assert summary.reasons == {"changed": 1}


def test_a_vanished_source_folder_is_no_reason_to_set_everything_aside(pets, tmp_path):
    source = tmp_path / "copy"
    shutil.copytree(pets[0], source)

    def meddle(now):
        if now.total_images and source.exists():
            shutil.rmtree(source)

    with pytest.raises(ComaError, match="has gone"):
        shard(source, tmp_path / "out", SMALL, meddle)
