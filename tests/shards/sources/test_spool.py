import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coma.errors import ComaError, DataError
from coma.shards.sources.parquet.images import list_parquet
from coma.shards.sources.parquet.read import copy_rows, read_rows
from coma.shards.sources.parquet.sandbox import SandboxedReader
from coma.shards.sources.parquet.spool import remove_spool, spool, spool_bytes
from coma.shards.sources.reader import SourceReader

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(file, data, **options):
    column = pa.array([{"bytes": b, "path": None} for b in data], IMAGE)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, "label": list(range(len(data)))}), file, **options)
    return file


DATA = {
    "train-0.parquet": [b"a" * 9, b"", None, b"bcd", b"e"],
    "train-1.parquet": [b"f" * 100, b"g"],
    "val-0.parquet": [b"h", b"ij", b"k" * 7],
}


@pytest.fixture
def source(tmp_path):
    for name, data in DATA.items():
        write(tmp_path / "in" / name, data, row_group_size=2)
    return tmp_path / "in"


def read(sources, split=0):
    """What each image of a split that is not refused reads as, by row of its file."""
    reader = SourceReader(sources.root)
    one = sources.splits[split]
    try:
        return {one.paths[i]: reader.read(one.image(i)) for i in range(len(one)) if i not in one.refused}
    finally:
        reader.close()


def expected(prefix):
    return {
        f"{name}/{row:09d}": value
        for name, data in DATA.items()
        for row, value in enumerate(data)
        if name.startswith(prefix) and value is not None
    }


def test_spooled_images_read_as_the_rows_they_are(source, tmp_path):
    sources = list_parquet(source)
    heard = []
    spooled = spool(sources, tmp_path / "spool", progress=heard.append)
    assert spooled.image_column is None
    assert read(spooled, 0) == expected("train")
    assert read(spooled, 1) == expected("val")
    assert sum(heard) == spool_bytes(sources) == 124
    assert spooled.splits[0].refused == sources.splits[0].refused != {}
    assert spooled.splits[0].labels.tolist() == sources.splits[0].labels.tolist()
    assert all(os.path.isabs(file) for file in spooled.splits[0].files)  # noqa: PTH117
    remove_spool(tmp_path / "spool")
    assert not (tmp_path / "spool").exists()


def test_only_what_is_wanted_is_copied(source, tmp_path):
    sources = list_parquet(source)
    wanted = {"train": np.array([True, False, True, True, False, False, True])}
    assert spool_bytes(sources, wanted) == 9 + 3 + 1
    spooled = spool(sources, tmp_path / "spool", wanted)
    images = [spooled.splits[0].image(i) for i in range(7)]
    reader = SourceReader(spooled.root)
    assert [reader.read(images[i]) for i in (0, 3, 6)] == [b"a" * 9, b"bcd", b"g"]
    for i in (4, 5):  # were not asked for: no other image's bytes are taken for theirs
        with pytest.raises(DataError, match="was changed"):
            reader.read(images[i])
    assert sorted(file.name for file in (tmp_path / "spool").iterdir()) == ["00000.bin", "00001.bin"]


def states(folder):
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_what_stands_is_kept(source, tmp_path):
    sources = list_parquet(source)
    folder = tmp_path / "spool"
    spool(sources, folder)
    before = states(folder)
    (folder / ".00000.bin.0.coma-tmp").write_bytes(b"left by a process that was killed")
    heard = []
    fewer = {"train": np.array([True, False, False, True, False, True, False])}
    spooled = spool(list_parquet(source), folder, fewer, heard.append)  # as when some shards are done
    assert states(folder) == before
    assert heard == [9 + 3 + 100]
    assert read(spooled) == expected("train")
    (folder / "00001.bin").unlink()
    with (folder / "00002.bin").open("r+b") as file:
        file.truncate(5)
    spooled = spool(sources, folder)
    assert read(spooled, 0) | read(spooled, 1) == expected("")
    assert states(folder)["00000.bin"] == before["00000.bin"]


def test_a_spool_that_lacks_something_is_written_anew(source, tmp_path):
    sources = list_parquet(source)
    spool(sources, tmp_path / "spool", {"train": np.eye(7, dtype=bool)[0]})
    spooled = spool(sources, tmp_path / "spool", {"train": np.eye(7, dtype=bool)[3]})
    assert SourceReader(spooled.root).read(spooled.splits[0].image(3)) == b"bcd"


def test_a_spool_of_another_listing_is_written_anew(source, tmp_path):
    spool(list_parquet(source), tmp_path / "spool")
    write(source / "train-1.parquet", [b"F" * 100, b"G"])  # the same sizes
    spooled = spool(list_parquet(source), tmp_path / "spool")
    assert read(spooled)["train-1.parquet/000000000"] == b"F" * 100


def test_parquet_that_changed_since_it_was_listed(source, tmp_path):
    sources = list_parquet(source)
    write(source / "train-1.parquet", [b"F" * 100, b"G"])
    with pytest.raises(DataError, match=r"train-1.parquet changed after it was listed; run"):
        spool(sources, tmp_path / "spool")
    assert [file.name for file in (tmp_path / "spool").iterdir()] == ["00000.bin"]
    then = sources.splits[0].mtimes_ns[-1]
    write(source / "train-1.parquet", [b"F" * 99, b"GG"])
    os.utime(source / "train-1.parquet", ns=(then, then))
    with pytest.raises(DataError, match=r"train-1.parquet was changed while its images were read"):
        spool(sources, tmp_path / "spool")
    (source / "train-1.parquet").unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        spool(sources, tmp_path / "spool")
    assert [file.name for file in (tmp_path / "spool").iterdir()] == ["00000.bin"]


def test_too_little_space_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    sources = list_parquet(source)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=10))
    with pytest.raises(ComaError, match=r"needs 124 bytes .* and has 30 free; .* --part"):
        spool(sources, tmp_path / "spool")
    assert not list((tmp_path / "spool").iterdir())


def test_a_place_that_cannot_be_written_is_one_line(source, tmp_path):
    with (
        SandboxedReader() as reader,
        pytest.raises(ComaError, match=r"cannot write .*nowhere.*x.bin: No such file"),
    ):
        list(
            reader.copy(
                source / "val-0.parquet",
                "image.bytes",
                np.array([1, 2, 7]),
                np.ones(3, bool),
                tmp_path / "nowhere" / "x.bin",
            )
        )


def test_nothing_but_spools_is_removed(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    names = ["00000.bin", "12345.bin", ".00001.bin.77.coma-tmp", "1.bin", "notes.txt", "00000.bin.bak"]
    for name in names:
        (folder / name).write_bytes(b"x")
    remove_spool(folder)
    assert {file.name for file in folder.iterdir()} == {"1.bin", "notes.txt", "00000.bin.bak"}
    remove_spool(tmp_path / "nowhere")


def test_a_process_that_dies_is_one_line(source):
    with SandboxedReader() as reader:
        reader.contents(source / "val-0.parquet")
        reader._process.kill()
        with pytest.raises(
            ComaError, match=r"the process reading .*val-0.parquet was ended by signal 9 \(out of memory\?\)"
        ):
            list(reader.rows(source / "val-0.parquet"))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.tuples(st.none() | st.binary(max_size=20), st.booleans()), min_size=1, max_size=40),
    group=st.integers(1, 7),
    struct=st.booleans(),
    large=st.booleans(),
    dictionary=st.booleans(),
)
def test_any_rows_are_copied_as_they_are(tmp_path, data, group, struct, large, dictionary):
    values = [value for value, _ in data]
    kind = pa.large_binary() if large else pa.binary()
    column = pa.array(values, kind)
    if struct:
        column = pa.array([None if v is None else {"bytes": v} for v in values], pa.struct([("bytes", kind)]))
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": column}), file, row_group_size=group, use_dictionary=dictionary)
    name = "image.bytes" if struct else "image"
    lengths = np.concatenate([batch.lengths for batch in read_rows(file, name, ())])
    assert lengths.tolist() == [-1 if value is None else len(value) for value in values]
    wanted = np.array([chosen for _, chosen in data])
    copied = sum(copy_rows(file, name, lengths, wanted, tmp_path / "x.bin", b"end"))
    parts = b"".join(value for value, chosen in data if chosen and value is not None)
    assert (tmp_path / "x.bin").read_bytes() == parts + b"end"
    assert copied == len(parts)
