import gc
import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from coma.errors import DataError, UsageError
from coma.shards.manifest import read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.run import default_out
from coma.shards.write.writer import shard

SMALL = ShardOptions(shard_bytes=20_000, workers=1)


def members(tar_path):
    import tarfile

    with tarfile.open(tar_path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def test_layout_and_bytes(tree, tmp_path):
    source = tree(tmp_path / "pets")
    summary = shard(source, tmp_path / "out", SMALL)
    assert (summary.found, summary.kept, summary.set_aside, summary.classes) == (18, 18, 0, 3)
    assert summary.shards > 2
    out = tmp_path / "out"
    tables = {"quarantine.parquet", "passed_over.parquet"}
    assert {path.name for path in out.iterdir()} == {"README.md", ".coma-sources.json", "_info.json", "train"} | tables
    manifest = read_manifest(out)
    names = {f"coma-train-{i:06d}" for i in range(summary.shards)}
    assert {path.name for path in (out / "train").iterdir()} == {
        "manifest.parquet",
        *(f"{name}.tar" for name in names),
        *(f"{name}.idx" for name in names),
    }
    assert manifest.class_names == ("cat", "dog", "emu")
    rows = pq.read_table(out / "train" / "manifest.parquet").to_pylist()
    assert len(rows) == len(manifest) == 18
    assert [row["key"] for row in rows] == [f"{i:09d}" for i in range(18)]
    assert sorted(row["source"] for row in rows) == sorted(
        str(path.relative_to(source)) for path in source.rglob("*.JPEG")
    )
    assert [row["source"] for row in rows] != sorted(row["source"] for row in rows)
    for row in rows:
        original = (source / row["source"]).read_bytes()
        with (out / "train" / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            assert tar.read(row["size"]) == original
        assert row["xxh3_64"] == xxhash.xxh3_64_intdigest(original)
        sample = members(out / "train" / row["shard"])
        assert sample[f"{row['key']}.jpg"] == original
        assert int(sample[f"{row['key']}.cls"]) == row["label"]
        about = json.loads(sample[f"{row['key']}.json"])
        assert about == {
            "source": row["source"],
            "width": row["width"],
            "height": row["height"],
            "label": row["label"],
            "class_name": row["source"].split("/")[0],
            "xxh3_64": f"{row['xxh3_64']:016x}",
        }


def test_two_runs_and_any_number_of_workers_give_the_same_bytes(tree, tmp_path, contents):
    source = tree(tmp_path / "pets")
    for name, workers in (("a", 1), ("b", 2)):
        shard(source, tmp_path / name, ShardOptions(shard_bytes=20_000, workers=workers))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    shard(source, tmp_path / "c", ShardOptions(shard_bytes=20_000, seed=1, workers=1))
    first, other = (read_manifest(tmp_path / name) for name in ("a", "c"))
    assert first.sources(range(18)) != other.sources(range(18))
    assert first.fingerprint != other.fingerprint


def test_every_image_found_is_kept_or_set_aside_with_a_reason(tree, image, tmp_path, contents):
    source = tree(tmp_path / "pets")
    (source / "cat/empty.jpg").write_bytes(b"")
    (source / "cat/words.png").write_bytes(b"not pixels")
    (source / "dog/half.jpg").write_bytes(image(1, 200, 200)[:2000])
    (source / "dog/still.gif").write_bytes(image(1, form="GIF"))
    (source / "emu/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(source / "emu/pipe.jpg")
    (source / "emu/folder.jpg").mkdir()
    (source / "emu/actually.jpg").write_bytes(image(5, form="PNG"))
    (source / "emu/notes.txt").write_text("hello")
    summary = shard(source, tmp_path / "out", SMALL)
    assert (summary.found, summary.kept, summary.set_aside) == (25, 20, 5)
    listed = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert {row["path"]: row["reason"].split(":")[0] for row in listed} == {
        "cat/empty.jpg": "empty",
        "cat/words.png": "not an image",
        "dog/half.jpg": "truncated",
        "emu/gone.jpg": "unreadable",
        "emu/pipe.jpg": "unreadable",
    }
    assert {row["path"]: row["bytes"] for row in listed}["dog/half.jpg"] == 2000
    assert Counter(summary.reasons) == Counter(row["reason"].split(":")[0] for row in listed)
    manifest = read_manifest(tmp_path / "out")
    named = dict(zip(manifest.sources(range(20)), manifest.formats(range(20)), strict=True))
    assert named["emu/actually.jpg"] == "png"  # what it is, whatever it was called
    assert named["dog/still.gif"] == "png"  # what it became: the stream's decoder reads no GIF
    assert list(summary.converted.values()) == [1]
    keys = [int(key) for key in manifest.keys(range(20))]
    assert keys == sorted(keys)
    assert max(keys) > 19  # the keys of what was set aside stay unused


def test_unlabelled(image, tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(4):
        (tmp_path / "flat" / f"{i}.png").write_bytes(image(i, form="PNG"))
    summary = shard(tmp_path / "flat", tmp_path / "out", ShardOptions(workers=1))
    manifest = read_manifest(tmp_path / "out")
    assert summary.classes == 0
    assert manifest.label is None
    assert manifest.class_names is None
    sample = members(tmp_path / "out/train" / manifest.shards[0])
    assert set(sample) == {f"{i:09d}.{end}" for i in range(4) for end in ("png", "json")}
    assert json.loads(sample["000000000.json"])["label"] is None


def test_splits_of_the_source_and_a_fraction_held_out(tree, tmp_path):
    tree(tmp_path / "both/train")
    tree(tmp_path / "both/val", per_class=2)
    summary = shard(tmp_path / "both", tmp_path / "a", SMALL)
    assert [(split.name, split.images) for split in summary.splits] == [("train", 18), ("val", 6)]
    with pytest.raises(UsageError, match="has validation images already"):
        shard(tmp_path / "both", tmp_path / "b", ShardOptions(val_fraction=0.5))
    summary = shard(tmp_path / "both/train", tmp_path / "c", ShardOptions(val_fraction=0.25, workers=1))
    assert [(split.name, split.images) for split in summary.splits] == [("train", 14), ("val", 4)]
    train, val = (read_manifest(tmp_path / "c", name) for name in ("train", "val"))
    assert not set(train.sources(range(14))) & set(val.sources(range(4)))
    with pytest.raises(UsageError, match="leaves a split empty"):
        shard(tmp_path / "both/train", tmp_path / "d", ShardOptions(val_fraction=0.001))
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "d").exists()


def test_resize(tree, image, tmp_path):
    source = tree(tmp_path / "pets")
    (source / "cat/large.png").write_bytes(image(9, 300, 200, "PNG"))
    shard(source, tmp_path / "out", ShardOptions(resize_px=40, workers=1))
    manifest = read_manifest(tmp_path / "out")
    assert np.minimum(manifest.width, manifest.height).max() <= 40
    large = manifest.sources(range(len(manifest))).index("cat/large.png")
    assert (manifest.width[large], manifest.height[large]) == (60, 40)
    assert set(manifest.formats(range(len(manifest)))) == {"jpeg"}


def test_a_shard_without_a_good_image_is_left_out(image, tmp_path):
    (tmp_path / "few").mkdir()
    for i in range(6):
        (tmp_path / "few" / f"{i}.jpg").write_bytes(image(i) if i % 2 else b"bad")
    summary = shard(tmp_path / "few", tmp_path / "out", ShardOptions(shard_bytes=1, workers=1))
    assert (summary.kept, summary.set_aside, summary.shards) == (3, 3, 3)
    assert len(list((tmp_path / "out/train").glob("*.tar"))) == 3
    assert json.loads((tmp_path / "out/_info.json").read_text())["splits"]["train"]["shard_lengths"] == [
        1,
        1,
        1,
    ]


def test_no_good_image_at_all(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.jpg").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=r"none of the 1 images .* \(1 empty\)"):
            shard(tmp_path / "bad", tmp_path / "out", SMALL)
    assert pq.read_table(tmp_path / "out/quarantine.parquet").num_rows == 1
    with pytest.raises(DataError):
        read_manifest(tmp_path / "out")


def test_a_complete_data_set_is_left_alone_and_anything_else_refused(tree, tmp_path, contents, caplog):
    caplog.set_level(logging.INFO, "coma")
    source = tree(tmp_path / "pets")
    out = tmp_path / "out"
    first = shard(source, out, SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = shard(source, out, SMALL)
    assert "is complete already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert (again.found, again.kept, again.shards) == (first.found, first.kept, first.shards)

    with pytest.raises(UsageError, match="a data set of --seed 0, not 1; name another OUT"):
        shard(source, out, ShardOptions(shard_bytes=20_000, seed=1))
    (source / "cat/new.jpg").write_bytes((source / "cat/000.JPEG").read_bytes())
    with pytest.raises(UsageError, match=r"other images \(18, not these 19\)"):
        shard(source, out, SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"not empty \(it holds thesis.tex\)"):
        shard(source, tmp_path / "mine", SMALL)
    with pytest.raises(UsageError, match="is a file"):
        shard(source, tmp_path / "mine/thesis.tex", SMALL)
    assert contents(tmp_path / "mine") == {"thesis.tex": b"precious"}


def test_out_inside_the_source_is_no_source(tree, tmp_path, contents):
    source = tree(tmp_path / "pets")
    shard(source, source / "pets-shards", SMALL)
    assert shard(source, source / "pets-shards", SMALL).found == 18
    shard(source, tmp_path / "elsewhere", SMALL)
    one, other = contents(source / "pets-shards"), contents(tmp_path / "elsewhere")
    for each in (one, other):  # the first is passed over by the second
        del each["passed_over.parquet"], each["_info.json"]
    assert one == other


def test_an_interrupt_of_the_merge_is_quiet_and_is_resumed(tree, tmp_path, monkeypatch):
    source, complaints = tree(tmp_path / "pets"), []
    monkeypatch.setattr("sys.unraisablehook", complaints.append)
    with monkeypatch.context() as patched:
        patched.setattr("coma.shards.write.merge.pc.is_valid", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shard(source, tmp_path / "out", SMALL)
    gc.collect()
    assert complaints == []
    assert shard(source, tmp_path / "out", SMALL).kept == 18


def interrupt(*_):
    raise KeyboardInterrupt


def test_default_out(tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert [str(default_out(path)) for path in map(type(tmp_path), (".", "../pets/"))] == ["pets-shards"] * 2


@pytest.mark.parametrize(
    "bad",
    [
        {"seed": -1},
        {"shard_bytes": 0},
        {"resize_px": 0},
        {"quality": 0},
        {"quality": 101},
        {"workers": 0},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
    ],
)
def test_options_have_limits(bad):
    with pytest.raises(UsageError, match=re.escape("--")):
        ShardOptions(**bad)


def test_progress_adds_up(tree, tmp_path):
    source = tree(tmp_path / "pets")
    (source / "cat/bad.jpg").write_bytes(b"bad")
    seen = []
    shard(source, tmp_path / "out", SMALL, seen.append)
    last = seen[-1]
    assert (last.images, last.total_images, last.set_aside) == (19, 19, 1)
    assert last.source_bytes == last.total_source_bytes == sum(p.stat().st_size for p in source.rglob("*.*"))
    assert last.shards == last.total_shards
    assert all(a.images <= b.images for a, b in pairwise(seen))


def test_no_torch_in_sharding_nor_in_its_workers():
    code = (
        "import sys, coma.shards.write.writer, coma.shards.write.one_shard;"
        "import coma.shards.check.verify, coma.shards.describe.describe;"
        "sys.exit(str(sorted({'torch', 'webdataset', 'nvidia', 'deepspeed', 'timm'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
