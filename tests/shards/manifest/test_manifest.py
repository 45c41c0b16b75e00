import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from drawn import shard_images

from coma.errors import DataError
from coma.shards.manifest import column_files, find_data, read_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("made")
    tree(folder / "pets/train")
    tree(folder / "pets/val", per_class=1)
    shard_images(folder / "pets", folder / "out", shard_bytes=20_000)
    return folder / "out"


@pytest.fixture(autouse=True, params=["in memory", "in files"])
def kept(request, tmp_path, monkeypatch):
    """A small manifest is read as it is, a large one by way of files: neither is to show."""
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    if request.param == "in files":
        monkeypatch.setattr(column_files, "LARGE_BYTES", 0)


@pytest.fixture
def data(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def rewrite(data, **columns):
    """Write the train manifest again with some columns changed."""
    path = data / "train/manifest.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    pq.write_table(table, path)


def test_arrays_agree_with_the_file(data):
    manifest = read_manifest(data)
    table = pq.read_table(data / "train/manifest.parquet").to_pydict()
    assert len(manifest) == 18
    for name in ("offset", "size", "width", "height", "label", "xxh3_64"):
        assert getattr(manifest, name).tolist() == table[name], name
    assert [manifest.shards[i] for i in manifest.shard_id] == table["shard"]
    assert manifest.shard_id.dtype == np.int32
    assert manifest.shard_lengths.tolist() == [table["shard"].count(shard) for shard in manifest.shards]
    ends = {}
    for name, offset, size in zip(table["shard"], table["offset"], table["size"], strict=True):
        ends[name] = max(ends.get(name, 0), offset + size)
    assert manifest.least_bytes.tolist() == [ends[shard] for shard in manifest.shards]
    assert manifest.keys([17, 0, 3]) == [table["key"][i] for i in (17, 0, 3)]
    assert manifest.sources(np.array([5])) == [table["source"][5]]
    assert manifest.keys([]) == []
    with pytest.raises(IndexError):
        manifest.keys([18])


def test_a_split_can_be_named_or_pointed_at(data):
    assert read_manifest(data, "val").split == "val"
    assert len(read_manifest(data / "val")) == 3
    assert read_manifest(data / "train").fingerprint == read_manifest(data).fingerprint
    with pytest.raises(DataError, match=r"no split 'test'; it has train, val"):
        read_manifest(data, "test")


def test_rows_far_apart_are_found_among_many_row_groups(data):
    path = data / "train/manifest.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=5)
    assert read_manifest(data).keys([16, 2, 9, 2]) == [f"{i:09d}" for i in (16, 2, 9, 2)]


def test_the_fingerprint_changes_with_the_data_and_with_nothing_else(data, tmp_path):
    base = read_manifest(data)
    shutil.copytree(data, tmp_path / "moved")
    assert read_manifest(tmp_path / "moved").fingerprint == base.fingerprint
    for name in ("offset", "size", "label", "xxh3_64"):
        values = getattr(base, name).copy()
        values[7] -= 1 if values[7] else -1
        rewrite(data, **{name: values})
        assert read_manifest(data).fingerprint != base.fingerprint, name
        rewrite(data, **{name: getattr(base, name)})
    assert read_manifest(data).fingerprint == base.fingerprint


def test_the_fingerprint_is_a_hash_of_whole_columns(data):
    """Runs and `_info.json` have it written down, so it may never change."""
    table = pq.read_table(data / "train/manifest.parquet").to_pydict()
    shards = list(dict.fromkeys(table["shard"]))
    digest = xxhash.xxh3_64(json.dumps(shards).encode())
    digest.update(np.array([shards.index(shard) for shard in table["shard"]], np.int32).tobytes())
    for name, kind in (("offset", np.int64), ("size", np.int64), ("xxh3_64", np.uint64), ("label", np.int32)):
        digest.update(np.array(table[name], kind).tobytes())
    assert read_manifest(data).fingerprint == digest.hexdigest()
    rewrite(data, label=[None] * 18)
    unlabelled = read_manifest(data)
    assert unlabelled.label is None
    assert unlabelled.fingerprint != digest.hexdigest()


@pytest.mark.parametrize("rows", [1, 5, 18])
def test_row_groups_do_not_show(data, rows):
    base, path = read_manifest(data), data / "train/manifest.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=rows)
    again = read_manifest(data)
    assert (again.fingerprint, again.shards) == (base.fingerprint, base.shards)
    assert again.shard_lengths.tolist() == base.shard_lengths.tolist()
    assert again.least_bytes.tolist() == base.least_bytes.tolist()


@pytest.mark.parametrize("name", ["../train/coma-train-000000.tar", "/etc/passwd", "..", "", "a/b.tar", "a\\b.tar"])
def test_a_shard_outside_its_folder_is_refused(data, name):
    rewrite(data, shard=[name] * 18)
    with pytest.raises(DataError, match="not a plain file name"):
        read_manifest(data)


def test_what_points_past_a_shard_is_refused(data):
    base = read_manifest(data)
    tar = data / "train" / base.shards[1]
    os.truncate(tar, 2000)
    with pytest.raises(DataError, match=rf"{base.shards[1]} is cut short"):
        read_manifest(data)
    tar.unlink()
    with pytest.raises(DataError, match=rf"shard .*{base.shards[1]} cannot be read"):
        read_manifest(data)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("offset", [-1] * 18),
        ("offset", [2**63 - 5] * 18),
        ("size", [0] * 18),
        ("size", [-(2**63)] * 18),
        ("width", [0] * 18),
        ("label", [99] * 18),
        ("label", [0] * 17 + [-1]),
        ("label", [None] * 9 + [0] * 9),
        ("shard", [f"coma-train-{i % 2:06d}.tar" for i in range(18)]),
    ],
)
def test_values_that_cannot_be_are_refused(data, column, values):
    rewrite(data, **{column: values})
    with pytest.raises(DataError):
        read_manifest(data)
    assert not list(data.parent.glob("cache/columns/?*[!k]"))  # but the lock


@pytest.mark.parametrize("junk", [b"", b"PAR1 not really PAR1", b"x" * 5000])
def test_a_damaged_manifest_is_refused(data, junk):
    (data / "train/manifest.parquet").write_bytes(junk)
    with pytest.raises(DataError, match="is not a manifest"):
        read_manifest(data)
    assert not list(data.parent.glob("cache/columns/*.*"))


def test_a_manifest_of_other_columns_is_refused(data):
    path = data / "train/manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["size"]), path)
    with pytest.raises(DataError):
        read_manifest(data)
    pq.write_table(table.set_column(3, "size", pa.array(["x"] * 18)), path)
    with pytest.raises(DataError, match="column size is string, not int64"):
        read_manifest(data)


def test_what_is_not_there(tmp_path, data):
    with pytest.raises(DataError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="make them with: coma shard"):
        read_manifest(tmp_path / "images")
    (tmp_path / "images/.coma-shard").mkdir()
    with pytest.raises(DataError, match="is not complete"):
        read_manifest(tmp_path / "images")
    for junk in ("{", "[]", json.dumps({"splits": {}})):
        (data / "_info.json").write_text(junk)
        with pytest.raises(DataError):
            read_manifest(data)


def test_find_data(made, tmp_path):
    with pytest.raises(DataError, match="no sharded data set in"):
        find_data(tmp_path)
    shutil.copytree(made, tmp_path / "a-shards")
    (tmp_path / "photos").mkdir()
    assert find_data(tmp_path) == tmp_path / "a-shards"
    assert find_data(tmp_path / "a-shards") == tmp_path / "a-shards"
    shutil.copytree(made, tmp_path / "b-shards")
    with pytest.raises(DataError, match=r"2 sharded data sets in .*: a-shards, b-shards"):
        find_data(tmp_path)
