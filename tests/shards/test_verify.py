import os
import shutil

import pytest
from PIL import Image

from coma.errors import DataError
from coma.shards.describe import as_json, contact_sheet, describe
from coma.shards.manifest import read_manifest
from coma.shards.verify import verify
from coma.shards.writer import ShardOptions, shard


@pytest.fixture(scope="module")
def made(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("made")
    source = tree(folder / "pets")
    (source / "cat/bad.jpg").write_bytes(b"")
    shard(source, folder / "out", ShardOptions(shard_bytes=20_000, workers=1, val_fraction=0.2))
    return folder / "out"


@pytest.fixture
def data(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def poke(path, offset, count=1):
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(count)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in old))


def test_sound_data_have_no_problems(data):
    seen = []
    report = verify(data, decode=True, progress=seen.append)
    assert report.problems == ()
    assert report.samples == 18
    assert seen[-1].image_bytes == seen[-1].total_image_bytes == report.image_bytes
    assert seen[-1].shards == report.shards


@pytest.mark.parametrize("decode", [False, True])
def test_one_flipped_byte_is_named(data, decode):
    manifest = read_manifest(data)
    row = 4
    path = data / "train" / manifest.shards[manifest.shard_id[row]]
    poke(path, int(manifest.offset[row] + manifest.size[row] - 1))
    (problem,) = verify(data, decode=decode).problems
    assert (problem.split, problem.shard, problem.key) == ("train", path.name, manifest.keys([row])[0])
    assert "hash differs" in problem.reason


def test_missing_cut_swapped_and_unlisted_shards_are_all_named(data):
    manifest = read_manifest(data)
    first, second, third = (data / "train" / name for name in manifest.shards[:3])
    first.unlink()
    os.truncate(second, int(manifest.offset[manifest.shard_id == 1][-1] + 10))
    shutil.copy(data / "val/coma-val-000000.tar", third)
    shutil.copy(data / "val/coma-val-000000.tar", data / "train/coma-train-000099.tar")
    reasons = {problem.shard: problem.reason for problem in verify(data).problems}
    assert "cannot be read: No such file" in reasons[first.name]
    assert "the shard ends" in reasons[second.name]
    assert third.name in reasons
    assert "not in the manifest" in reasons["coma-train-000099.tar"]


def test_a_split_can_be_checked_alone(data):
    (data / "train/coma-train-000000.tar").unlink()
    assert verify(data / "val").problems == ()
    assert len(verify(data).problems) == 1


def test_no_data(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(DataError):
        verify(tmp_path)


def test_description_counts_what_is_there(data):
    found = describe(data)
    train, val = found.splits
    assert (train.split, val.split) == ("train", "val")
    assert train.samples + val.samples == 18
    assert found.set_aside == {"empty": 1}
    assert found.class_names == ("cat", "dog", "emu")
    assert train.formats == {"jpeg": train.samples}
    manifest = read_manifest(data)
    assert (train.width.min, train.width.max) == (manifest.width.min(), manifest.width.max())
    assert as_json(found)["splits"]["val"]["samples"] == val.samples


def test_contact_sheet_shows_each_image_once(data):
    sheet = contact_sheet(data, images=9, cell_px=20)
    assert sheet.size == (3 * 24 + 4, 3 * 24 + 4)
    cells = [
        sheet.crop((4 + 24 * x, 4 + 24 * y, 24 + 24 * x, 24 + 24 * y)) for x in range(3) for y in range(3)
    ]
    assert all(cell.getcolors(1) is None for cell in cells)  # no cell is blank
    assert len({cell.tobytes() for cell in cells}) == 9
    assert isinstance(sheet, Image.Image)
