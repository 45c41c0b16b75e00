"""Sources that were rewritten at the same sizes are noticed; data sets stay functions of the images alone."""

import logging
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coma.shards.write.dry_run import dry_run
from coma.shards.write.options import ShardOptions
from coma.shards.write.resume import parts_folder
from coma.shards.write.source_times import TIMES_NAME
from coma.shards.write.writer import shard

SMALL = ShardOptions(shard_bytes=20_000, workers=1)
HOUR_NS = 3600 * 10**9


def as_folder(tree: Path) -> tuple[Path, list[Path]]:
    return tree, sorted(tree.rglob("*.JPEG"))


def as_tars(tree: Path) -> tuple[Path, list[Path]]:
    folder = tree.with_name("tars")
    folder.mkdir()
    for of_class in sorted(tree.iterdir()):
        with tarfile.open(folder / f"{of_class.name}.tar", "w") as tar:
            tar.add(of_class, of_class.name)
    return folder, sorted(folder.iterdir())


def as_parquet(tree: Path) -> tuple[Path, list[Path]]:
    folder = tree.with_name("parquet")
    folder.mkdir()
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(tree.rglob("*.JPEG"))]
    pq.write_table(pa.table({"image": images}), folder / "train-00000-of-00001.parquet")
    return folder, sorted(folder.iterdir())


def as_list(tree: Path) -> tuple[Path, list[Path]]:
    files = sorted(tree.rglob("*.JPEG"))
    names = tree.with_name("list.txt")
    names.write_text("".join(f"{path.relative_to(tree.parent)}\n" for path in files))
    return names, files


@pytest.fixture
def source(tree, tmp_path):
    """A source of 18 images and the files that hold them."""
    return as_folder(tree(tmp_path / "pets"))


def touch(files: list[Path], by_ns: int) -> None:
    for path in files:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + by_ns))


@pytest.fixture
def said(caplog):
    """What was said since the last call."""
    caplog.set_level(logging.INFO, "coma")

    def lines() -> str:
        text = caplog.text
        caplog.clear()
        return text

    return lines


@pytest.mark.parametrize("kind", [as_folder, as_tars, as_parquet, as_list])
def test_rewritten_files_are_named_and_the_data_set_is_left_alone(tree, tmp_path, contents, said, kind):
    path, files = kind(tree(tmp_path / "pets"))
    shard(path, tmp_path / "out", SMALL)
    before = contents(tmp_path / "out")
    said()
    touch(files, HOUR_NS)
    for look in (shard, dry_run):
        look(path, tmp_path / "out", SMALL)
        text = said()
        assert f"18 of 18 images are in files that have changed since {tmp_path / 'out'} was written" in text
        assert "nothing to do" not in text
    assert contents(tmp_path / "out") == before


def test_a_file_with_an_older_time_is_another_file_too(source, tmp_path, said):
    path, files = source
    shard(path, tmp_path / "out", SMALL)
    said()
    touch(files[:1], -HOUR_NS)
    shard(path, tmp_path / "out", SMALL)
    assert "images are in files that have changed since" in said()


def test_the_warning_counts_and_ends_when_the_times_are_removed_as_it_says(source, tmp_path, said):
    path, files = source
    shard(path, tmp_path / "out", SMALL)
    touch(files[:1], HOUR_NS)
    said()
    shard(path, tmp_path / "out", SMALL)
    text = said()
    assert f"{18 // len(files)} of 18 images" in text
    assert f"remove {tmp_path / 'out' / TIMES_NAME}" in text
    (tmp_path / "out" / TIMES_NAME).unlink()
    for _ in range(2):
        shard(path, tmp_path / "out", SMALL)
        assert "is complete already: nothing to do" in said()
    touch(files[:1], HOUR_NS)
    shard(path, tmp_path / "out", SMALL)
    assert "have changed since" in said()


def test_a_run_that_goes_on_says_that_finished_shards_are_of_older_files(source, tmp_path, monkeypatch, said):
    path, files = source
    out = tmp_path / "out"
    stop_before_the_end(path, out, monkeypatch)
    said()
    touch(files, HOUR_NS)
    summary = shard(path, out, SMALL)
    assert summary.kept_shards > 0
    assert "18 of 18 images are in files that have changed since" in said()
    shard(path, out, SMALL)
    assert "18 of 18 images are in files that have changed since" in said()


def test_a_run_without_a_finished_shard_begins_with_the_files_as_they_are(source, tmp_path, monkeypatch, said):
    path, files = source
    out = tmp_path / "out"
    stop_before_the_end(path, out, monkeypatch)
    for part in parts_folder(out).iterdir():
        part.unlink()
    touch(files, HOUR_NS)
    said()
    shard(path, out, SMALL)
    shard(path, out, SMALL)
    text = said()
    assert "have changed since" not in text
    assert "is complete already: nothing to do" in text


def test_an_unfinished_run_of_an_older_version_goes_on(source, tmp_path, monkeypatch, said):
    path, _ = source
    stop_before_the_end(path, tmp_path / "out", monkeypatch)
    (tmp_path / "out" / TIMES_NAME).unlink()
    said()
    assert shard(path, tmp_path / "out", SMALL).kept_shards > 0
    assert "have changed since" not in said()


def test_parts_notice_it_too(source, tmp_path, said):
    path, files = source
    first, second = (ShardOptions(shard_bytes=20_000, workers=1, part=(number, 2)) for number in (1, 2))
    shard(path, tmp_path / "out", first)
    touch(files, HOUR_NS)
    said()
    shard(path, tmp_path / "out", second)
    assert "18 of 18 images are in files that have changed since" in said()


def test_but_for_the_times_a_copy_of_a_source_gives_the_same_data_set(source, tmp_path, contents):
    path, files = source
    shard(path, tmp_path / "out", SMALL)
    touch(files, HOUR_NS)
    shard(path, tmp_path / "again", SMALL)
    one, other = contents(tmp_path / "out"), contents(tmp_path / "again")
    assert one.pop(TIMES_NAME) != other.pop(TIMES_NAME)
    assert one == other


@pytest.mark.parametrize("text", ["", "[1]", '{"digest": "x"}'])
def test_damaged_times_are_as_good_as_none(source, tmp_path, text, said):
    path, _ = source
    shard(path, tmp_path / "out", SMALL)
    (tmp_path / "out" / TIMES_NAME).write_text(text)
    said()
    shard(path, tmp_path / "out", SMALL)
    assert "is complete already: nothing to do" in said()


def stop_before_the_end(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run when all its shards are finished and nothing is merged."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("coma.shards.write.writer.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            shard(source, out, SMALL)
