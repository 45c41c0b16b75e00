"""Somebody else's WebDataset tars, indexed where they lie: read by us and by stock readers, every image told of."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from coma.errors import DataError, UsageError
from coma.shards.check.verify import verify
from coma.shards.index.index import default_out, index, run_command
from coma.shards.index.options import IndexOptions
from coma.shards.manifest import read_info, read_manifest
from coma.shards.tar import header


@pytest.fixture(scope="module")
def jpegs(image):
    return [image(i, 20 + i % 5, 24 - i % 7) for i in range(12)]


def write(folder, jpegs, pattern="photos-%04d.tar", **more):
    """Shards of webdataset's own writer, four samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / pattern), maxcount=4, verbose=0, encoder=False) as writer:
        for i, jpeg in enumerate(jpegs):
            sample = {"__key__": f"{i:06d}", "jpg": jpeg, "cls": str(i % 3).encode()}
            writer.write(sample | {name: make(i) for name, make in more.items()})
    return folder


def plain_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def quarantine(out):
    rows = pq.read_table(out / "quarantine.parquet").to_pylist()
    return {row["path"]: row["reason"].split(":")[0] for row in rows}


@pytest.fixture(scope="module")
def made(tmp_path_factory, jpegs, contents):
    """An index of good tars: (their folder, OUT, what index returned)."""
    folder = tmp_path_factory.mktemp("made")
    source = write(folder / "photos", jpegs)
    before = contents(source)
    summary = index(source, folder / "out", workers=2)
    assert contents(source) == before
    return source, folder / "out", summary


def test_the_manifest_says_where_each_image_is(made, jpegs):
    _, out, summary = made
    manifest = read_manifest(out)
    assert (summary.found, summary.kept, summary.set_aside, summary.shards) == (12, 12, 0, 3)
    assert manifest.shards == ("photos-0000.tar", "photos-0001.tar", "photos-0002.tar")
    assert manifest.label.tolist() == [i % 3 for i in range(12)]
    assert manifest.class_names is None
    assert manifest.keys(range(12)) == [f"{i:06d}" for i in range(12)]
    assert manifest.sources([5]) == ["photos-0001.tar/000005.jpg"]
    for row, jpeg in enumerate(jpegs):
        tar = (out / "train" / manifest.shards[manifest.shard_id[row]]).read_bytes()
        assert tar[manifest.offset[row] :][: manifest.size[row]] == jpeg
        assert (manifest.width[row], manifest.height[row]) == (20 + row % 5, 24 - row % 7)


def test_out_holds_relative_links_and_what_a_data_set_has(made, contents):
    source, out, _ = made
    assert sorted(contents(out)) == [
        "README.md",
        "_info.json",
        "passed_over.parquet",
        "quarantine.parquet",
        *(f"train/{name}" for name in ("manifest.parquet",)),
        *(f"train/photos-{i:04}.{kind}" for i in range(3) for kind in ("idx", "tar")),
    ]
    link = out / "train/photos-0000.tar"
    assert str(link.readlink()) == "../../photos/photos-0000.tar"
    assert link.samefile(source / "photos-0000.tar")
    info = read_info(out)
    assert info["splits"]["train"]["num_samples"] == 12
    assert info["coma"]["found"] == 12
    assert quarantine(out) == {}


def test_the_folders_may_move_together(made, tmp_path):
    _, out, _ = made
    shutil.copytree(out.parent, tmp_path / "moved", symlinks=True)
    moved = tmp_path / "moved/out"
    assert (moved / "train/photos-0000.tar").resolve() == (tmp_path / "moved/photos/photos-0000.tar")
    assert read_manifest(moved).fingerprint == read_manifest(out).fingerprint


def test_verify_passes(made):
    report = verify(made[1], decode=True)
    assert (report.samples, report.problems) == (12, ())


def test_stream_gives_every_sample_once(made):
    from coma.pipeline import Stream

    with Stream(made[1], batch_size=5, image_size=64, training=False, device="cpu") as stream:
        batches = list(stream)
    assert sorted(sample for batch in batches for sample in batch.samples.tolist()) == list(range(12))
    labels = {s: k for batch in batches for s, k in zip(batch.samples.tolist(), batch.labels.tolist(), strict=True)}
    assert labels == {i: i % 3 for i in range(12)}


def dali(out, batch_size):
    from nvidia.dali import fn, pipeline_def

    tars = sorted(map(str, out.glob("*/*.tar")))

    @pipeline_def(batch_size=batch_size, num_threads=1, device_id=None)
    def stock():
        return tuple(
            fn.readers.webdataset(
                paths=tars,
                index_paths=[tar.replace(".tar", ".idx") for tar in tars],
                ext=["jpg", "cls"],
                missing_component_behavior="error",
                name="reader",
            )
        )

    pipeline = stock()
    pipeline.build()
    assert pipeline.reader_meta("reader")["epoch_size"] == batch_size
    images, labels = pipeline.run()
    return [(np.array(images[i]).tobytes(), int(np.array(labels[i]).tobytes())) for i in range(batch_size)]


def test_stock_readers(made, jpegs):
    from timm.data import create_dataset

    _, out, _ = made
    expected = [(jpeg, i % 3) for i, jpeg in enumerate(jpegs)]
    tars = sorted(map(str, out.glob("train/*.tar")))
    samples = webdataset.WebDataset(tars, shardshuffle=False)
    assert [(sample["jpg"], int(sample["cls"])) for sample in samples] == expected
    assert dali(out, 12) == expected
    dataset = create_dataset("wds/", root=str(out), split="train", batch_size=1)
    assert [label for _, label in dataset] == [label for _, label in expected]


def test_the_index_is_what_dali_s_own_tool_writes(made, tmp_path):
    import subprocess
    import sys

    for tar in made[1].glob("train/*.tar"):
        made_by_dali = tmp_path / "x.idx"
        tool = [sys.executable, "-m", "wds2idx", str(tar), str(made_by_dali)]
        subprocess.run(tool, check=True, capture_output=True)
        assert made_by_dali.read_text() == tar.with_suffix(".idx").read_text()


def test_bad_images_are_set_aside_and_stay_where_they_are(tmp_path, jpegs):
    bad = [*jpegs[:4], b"", b"text", jpegs[0][:200], jpegs[7]]
    source = write(tmp_path / "photos", bad)
    plain_tar(source / "rubbish-0000.tar", [("1.jpg", b"rubbish"), ("1.cls", b"1")])
    plain_tar(source / "empty-0000.tar", [("1.txt", b"words")])
    out = tmp_path / "out"
    summary = index(source, out, workers=1)
    assert (summary.found, summary.kept, summary.set_aside) == (9, 5, 4)
    assert quarantine(out) == {
        "photos-0001.tar/000004.jpg": "empty",
        "photos-0001.tar/000005.jpg": "not an image",
        "photos-0001.tar/000006.jpg": "truncated",
        "rubbish-0000.tar/1.jpg": "not an image",
    }
    assert read_manifest(out).shards == ("photos-0000.tar", "photos-0001.tar")
    assert not (out / "train/rubbish-0000.tar").exists()
    assert verify(out).problems == ()
    assert dali(out, 5)[4] == (jpegs[7], 1)


def test_a_header_check_alone(tmp_path, jpegs):
    source = write(tmp_path / "photos", [jpegs[0][:-200], jpegs[1]])
    assert index(source, tmp_path / "out", decode=False, workers=1).set_aside == 0


def test_splits_folders_and_class_names(tmp_path, jpegs):
    names = {"json": lambda i: json.dumps({"class_name": ("ant", "bee", "cat")[i % 3]}).encode()}
    write(tmp_path / "photos/train", jpegs, "%04d.tar", **names)
    write(tmp_path / "photos/deep/validation", jpegs[:4], "%04d.tar", **names)
    summary = index(tmp_path / "photos", tmp_path / "out", workers=1)
    assert [(split.name, split.images) for split in summary.splits] == [("train", 12), ("val", 4)]
    assert summary.classes == 3
    manifest = read_manifest(tmp_path / "out", "val")
    assert manifest.class_names == ("ant", "bee", "cat")
    assert manifest.sources([0]) == ["deep/validation/0000.tar/000000.jpg"]
    assert str((tmp_path / "out/val/0000.tar").readlink()) == "../../photos/deep/validation/0000.tar"
    assert verify(tmp_path / "out").problems == ()


def test_a_label_that_is_missing_leaves_the_split_without(tmp_path, jpegs, caplog):
    source = write(tmp_path / "photos", jpegs[:8])
    plain_tar(source / "more.tar", [("x.jpg", jpegs[8])])
    index(source, tmp_path / "out", workers=1)
    assert read_manifest(tmp_path / "out").label is None
    assert "split train is taken without labels: 1 of its 9 images have none" in caplog.text


def test_odd_names(tmp_path, jpegs):
    long_name = "ü" * 70
    members = [
        *(("a b/c d.jpg", jpegs[0]), ("a b/c d.cls", b"1")),
        *(("./x.y/z.jpg", jpegs[1]), ("./x.y/z.mask one.png", b""), ("./x.y/z.cls", b"2")),
        *((f"{long_name}.jpg", jpegs[2]), (f"{long_name}.cls", b"0")),
    ]
    plain_tar(tmp_path / "photos.v1.tar", members)
    out = tmp_path / "out"
    index(tmp_path / "photos.v1.tar", out, workers=1)
    assert read_manifest(out).keys(range(3)) == ["a b/c d", "./x.y/z", long_name]
    assert verify(out, decode=True).problems == ()
    assert dali(out, 3) == [(jpegs[0], 1), (jpegs[1], 2), (jpegs[2], 0)]


def test_hostile_tars(tmp_path, jpegs):
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    source = tmp_path / "photos"
    plain_tar(source / "x.tar", [("../up.jpg", jpegs[0]), ("/root.jpg", jpegs[1]), ("good.jpg", jpegs[2])])
    with tarfile.open(source / "x.tar", "a") as archive:
        archive.addfile(link)
    with (source / "holes.tar").open("wb") as file:
        file.write(header(b"huge.jpg", 6 << 30))
        file.truncate((6 << 30) + 10240)
    out = tmp_path / "out"
    summary = index(source, out, workers=1)
    assert summary.kept == 1
    assert quarantine(out) == {
        "holes.tar/huge.jpg": "bomb",
        "x.tar/../up.jpg": "unsafe name",
        "x.tar//root.jpg": "unsafe name",
        "x.tar/link.jpg": "link",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_damaged_tars_are_named_and_the_rest_is_kept(tmp_path, jpegs, contents):
    source = write(tmp_path / "photos", jpegs)
    whole = contents(source)
    tar = source / "photos-0001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    (source / "photos-0002.tar").write_bytes(b"\x1f\x8b" * 600)
    out = tmp_path / "out"
    with pytest.raises(
        DataError, match=r"2 tars cannot be read: .*0001.tar \(cut short.*0002.tar \(.*gunzip\)\); down"
    ):
        index(source, out, workers=1)
    with pytest.raises(DataError, match="not complete"):
        read_manifest(out)
    for name, data in whole.items():
        if data != (source / name).read_bytes():
            (source / name).write_bytes(data)
    summary = index(source, out, workers=1)
    assert (summary.kept, summary.kept_shards) == (12, 1)
    index(source, tmp_path / "other", workers=1)
    assert read_manifest(out).fingerprint == read_manifest(tmp_path / "other").fingerprint
    assert contents(out) == contents(tmp_path / "other")


def test_an_index_that_stands_is_complete_and_others_are_refused(tmp_path, jpegs, contents, caplog):
    caplog.set_level("INFO", "coma")
    source, out = write(tmp_path / "photos", jpegs), tmp_path / "out"
    index(source, out, workers=1)
    before = contents(out)
    assert index(source, out, workers=1).kept == 12
    assert "is complete already: nothing to do" in caplog.text
    with pytest.raises(UsageError, match="that is not an index of these tars"):
        index(source / "photos-0000.tar", out)
    with pytest.raises(UsageError, match="that is not an index of these tars"):
        index(source, out, decode=False)
    shutil.copytree(source, tmp_path / "copy/photos")
    with pytest.raises(UsageError, match="which have changed since"):
        index(tmp_path / "copy/photos", out)
    os.utime(source / "photos-0000.tar", ns=(1, 1))
    with pytest.raises(UsageError, match="which have changed since"):
        index(source, out)
    assert contents(out) == before


def test_refusals(tmp_path, jpegs, made):
    source = write(tmp_path / "photos", jpegs)
    with pytest.raises(UsageError, match="no such file or folder"):
        index(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UsageError, match="--workers is 0; it must be at least 1"):
        run_command(IndexOptions(source=source, out=tmp_path / "out", workers=0))
    with pytest.raises(UsageError, match="is not empty"):
        index(source, source)
    with pytest.raises(UsageError, match="is a data set already, with manifests"):
        index(made[1], tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"no .tar files in"):
        index(tmp_path / "none", tmp_path / "out")
    write(tmp_path / "photos/more", jpegs)
    with pytest.raises(
        UsageError,
        match=r"more/photos-0000.tar and photos-0000.tar in .* would both be train",
    ):
        index(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_good_at_all(tmp_path):
    plain_tar(tmp_path / "bad.tar", [("1.jpg", b"bad"), ("2.jpg", b"")])
    plain_tar(tmp_path / "words.tar", [("1.txt", b"words")])
    with pytest.raises(DataError, match=r"none of the 2 images of .* is any good \(1 .*; .*quarantine"):
        index(tmp_path / "bad.tar", tmp_path / "out", workers=1)
    with pytest.raises(DataError, match=r"no sample in the tars of .* has an image"):
        index(tmp_path / "words.tar", tmp_path / "other", workers=1)


def test_out_in_the_source_is_not_looked_into(tmp_path, jpegs):
    source = write(tmp_path / "photos", jpegs)
    for _ in range(2):
        assert index(source, source / "out", workers=1).kept == 12


def test_default_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "x.tar").touch()
    assert str(default_out(tmp_path / "photos")) == "photos-index"
    assert str(default_out(tmp_path / "x.tar")) == "x-index"
