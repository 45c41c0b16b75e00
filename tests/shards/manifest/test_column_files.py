"""The columns of large manifests as files: the same numbers, whatever becomes of the files."""

import json
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coma.errors import DataError
from coma.shards.files import folder_at, open_for_arrow
from coma.shards.manifest import column_files, load_manifest, schema
from coma.shards.manifest.columns import DTYPES, open_parquet, read_columns, scan

ROWS, ROW_GROUP_ROWS = 5000, 700


def write_manifest(folder, seed=0, classes=7):
    """A split of samples that do not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = [f"{i:09d}" for i in range(ROWS)]
    columns = {
        "key": names,
        "shard": [f"coma-train-{i // 431:06d}.tar" for i in range(ROWS)],
        "offset": rng.integers(0, 10**6, ROWS),
        "size": rng.integers(1, 10**6, ROWS),
        "width": rng.integers(1, 600, ROWS),
        "height": rng.integers(1, 600, ROWS),
        "format": ["jpeg"] * ROWS,
        "label": rng.integers(0, classes, ROWS) if classes else [None] * ROWS,
        "xxh3_64": rng.integers(0, 2**64, ROWS, np.uint64),
        "source": names,
    }
    about = schema([str(i) for i in range(classes)] if classes else None)
    table = pa.table([pa.array(columns[f.name], f.type) for f in about], schema=about)
    pq.write_table(table, folder / "manifest.parquet", row_group_size=ROW_GROUP_ROWS)
    return folder


@pytest.fixture
def split(tmp_path):
    return write_manifest(tmp_path / "data/train")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(column_files, "LARGE_BYTES", 0)
    return tmp_path / "cache/columns"


def kept(cache):
    return sorted(path for path in cache.iterdir() if path.name != "lock")


def whole(split):
    """The same in memory."""
    path = split / "manifest.parquet"
    with open_for_arrow(path) as source:
        return read_columns(path, source)


def assert_same(manifest, split):
    columns = whole(split)
    assert manifest.fingerprint == columns.fingerprint
    assert manifest.shards == columns.summary.shards
    assert manifest.class_names == columns.summary.class_names
    assert tuple(manifest.shard_lengths) == columns.summary.shard_lengths
    assert tuple(manifest.least_bytes) == columns.summary.least_bytes
    for name in DTYPES:
        found = getattr(manifest, name)
        assert (found is None) == (name not in columns.arrays), name
        if found is not None:
            assert found.dtype == columns.arrays[name].dtype
            np.testing.assert_array_equal(found, columns.arrays[name])


@pytest.mark.parametrize("classes", [7, 0])
def test_the_same_is_in_the_files_as_in_memory(tmp_path, cache, classes, caplog):
    split = write_manifest(tmp_path / "data/train", classes=classes)
    assert_same(load_manifest(split), split)
    assert [path.suffix for path in kept(cache)] == [""]
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(kept(cache)[0]) in told.getMessage()
    assert "5000 samples" in told.getMessage()
    caplog.clear()
    assert_same(load_manifest(split), split)
    assert not caplog.records


def test_once_there_are_files_the_rows_are_not_read_again(split):
    path = split / "manifest.parquet"
    before, status = load_manifest(split), path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(bytes(20_000))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = load_manifest(split)
    np.testing.assert_array_equal(again.xxh3_64, before.xxh3_64)
    os.utime(path)
    with pytest.raises(DataError, match="is not a manifest"):
        load_manifest(split)


def test_another_manifest_in_its_place_is_another(split, cache):
    before = load_manifest(split)
    first = before.offset[:10].tolist()
    write_manifest(split, seed=1)
    assert_same(load_manifest(split), split)
    assert len(kept(cache)) == 2
    assert before.offset[:10].tolist() == first


def test_small_manifests_leave_no_files(split, cache, monkeypatch):
    monkeypatch.setattr(column_files, "LARGE_BYTES", 10**9)
    assert_same(load_manifest(split), split)
    assert not cache.exists()


@pytest.mark.parametrize("what", ["cut", "empty", "gone", "of another type", "no json", "other json", "all gone"])
def test_files_that_are_not_whole_are_written_again(split, cache, what):
    before = load_manifest(split)
    (folder,) = kept(cache)
    column, about = folder / "offset.npy", folder / "columns.json"
    expected = before.offset.tolist()
    if what == "cut":  # by another file of the name: cutting short the mapped one would kill this process
        whole_column = column.read_bytes()
        column.unlink()
        column.write_bytes(whole_column[:-8])
    elif what == "of another type":
        column.unlink()
        np.save(column, before.offset.astype(np.int32))
    elif what == "empty":
        column.unlink()
        column.touch()
    elif what == "gone":
        column.unlink()
    elif what == "no json":
        about.write_text("{")
    elif what == "other json":
        about.write_text("[1]")
    else:
        for file in folder.iterdir():
            file.unlink()
    assert_same(load_manifest(split), split)
    assert kept(cache) == [folder]
    assert before.offset.tolist() == expected  # mapped from files that have no name any more


LOAD = """
import sys
from pathlib import Path
from coma.shards.manifest import column_files
from coma.shards.manifest import load_manifest
column_files.LARGE_BYTES = 0
print(load_manifest(Path(sys.argv[1])).fingerprint)
"""


def loading(split, before=""):
    command = [sys.executable, "-c", before + LOAD, str(split)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_together_write_them_once(split, cache):
    processes = [loading(split) for _ in range(4)]
    said = [process.communicate(timeout=60) for process in processes]
    assert {out.strip() for out, _ in said} == {whole(split).fingerprint}
    assert sum("writing the columns" in errors for _, errors in said) == 1
    assert [path.suffix for path in kept(cache)] == [""]


def test_a_full_disk_is_no_reason_to_fail(split, cache):
    """A limit on the size of files stands for it: writes are cut short, then refused."""
    process = loading(split, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n")
    out, errors = process.communicate(timeout=60)
    assert out.strip() == whole(split).fingerprint
    assert errors.count("cannot be cached") == 1
    assert "COMA_CACHE" in errors
    assert not kept(cache)


def test_a_folder_that_cannot_be_is_no_reason_to_fail(split, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "file/cache"))
    assert_same(load_manifest(split), split)
    assert [record.getMessage().count("Not a directory") for record in caplog.records] == [1]


def test_neither_is_a_home_that_is_not_known(split, monkeypatch, caplog):
    monkeypatch.setenv("COMA_CACHE", "~no-such-user-of-this-machine/cache")
    assert_same(load_manifest(split), split)
    assert [record.getMessage().count("home directory") for record in caplog.records] == [1]


def test_what_killed_processes_left_is_removed(split, cache):
    load_manifest(split)
    (folder,) = kept(cache)
    left = folder.rename(folder.with_suffix(".partial"))
    (left / "columns.json").write_text('{"format": "coma columns 1"}')
    (left / ".columns.json.0123.coma-tmp").touch()
    early = folder.with_name("0" * 32 + ".partial")
    early.mkdir()
    (early / "columns.json").write_text('{"format": "coma columns 1"}')
    assert_same(load_manifest(split), split)
    assert kept(cache) == [folder]


def test_a_process_killed_before_it_said_whose_the_folder_is(split, cache):
    load_manifest(split)
    (folder,) = kept(cache)
    for file in folder.iterdir():
        file.unlink()
    folder.rename(folder.with_suffix(".partial"))
    assert_same(load_manifest(split), split)
    assert kept(cache) == [folder]


def test_columns_that_nobody_uses_are_removed_and_nothing_else(split, tmp_path, cache):
    old, used, own, others = (
        time.time() - 31 * 86400,
        time.time() - 29 * 86400,
        cache / "mine",
        cache / "theirs",
    )
    load_manifest(split)
    (unused,) = kept(cache)
    other = write_manifest(tmp_path / "other", seed=1)
    load_manifest(other)
    (still,) = set(kept(cache)) - {unused}
    for folder, text in ((own, None), (others, '{"format": "something else"}')):
        folder.mkdir()
        (folder / "offset.npy").touch()
        if text is not None:
            (folder / "columns.json").write_text(text)
            os.utime(folder / "columns.json", (old, old))
    os.utime(unused / "columns.json", (old, old))
    os.utime(still / "columns.json", (used, used))

    load_manifest(split)  # used again
    load_manifest(write_manifest(tmp_path / "third", seed=2))
    assert len(kept(cache)) == 5
    os.utime(unused / "columns.json", (old, old))
    load_manifest(write_manifest(tmp_path / "fourth", seed=3))
    assert set(kept(cache)) >= {still, own, others}
    assert len(kept(cache)) == 5
    assert not unused.exists()
    assert (own / "offset.npy").exists()
    assert (others / "offset.npy").exists()


def test_a_manifest_that_is_cut_short_while_it_is_read_is_an_error(split):
    path = split / "manifest.parquet"
    with open_for_arrow(path) as source, open_parquet(path, source) as file:
        os.truncate(path, 20_000)
        with pytest.raises((pa.ArrowException, OSError)):
            scan(path, file, lambda *_: None)


def test_a_remote_manifest(split, cache):
    """As a store in this process: other files than those of the same manifest on a disk, and kept as well."""
    remote = folder_at("memory://bucket/train")
    remote.mkdir(parents=True, exist_ok=True)
    (remote / "manifest.parquet").write_bytes((split / "manifest.parquet").read_bytes())
    assert_same(load_manifest(remote), split)
    assert_same(load_manifest(remote), split)
    assert len(kept(cache)) == 1
    other = write_manifest(split.parent / "other", seed=4)
    (remote / "manifest.parquet").write_bytes((other / "manifest.parquet").read_bytes())
    assert_same(load_manifest(remote), other)
    assert json.loads((kept(cache)[0] / "columns.json").read_text())["facts"]["rows"] == ROWS
