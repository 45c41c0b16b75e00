"""Every layout, from what a user has to a data set: ImageNet's give the same one, whatever it came in."""

import csv
import json
import logging
import tarfile

import pytest
import webdataset
from miniatures import WORDS, folders, hugging_face, imagenet, kaggle, official

from coma.errors import DataError, UsageError
from coma.shards.manifest import read_manifest
from coma.shards.sources.detect import list_source
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

SMALL = ShardOptions(shard_bytes=10_000, workers=1)


@pytest.fixture(scope="module")
def images(image):
    return imagenet(image)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, images, contents):
    """The data set that comes of the tree."""
    folder = tmp_path_factory.mktemp("tree")
    summary = shard(folders(folder / "imagenet", images), folder / "out", SMALL)
    assert (summary.kept, summary.set_aside, summary.classes) == (17, 0, 3)
    return contents(folder / "out")


@pytest.mark.parametrize("layout", [official, kaggle, hugging_face])
def test_every_layout_of_imagenet_gives_the_same_manifest_and_shards(layout, tmp_path, images, expected, contents):
    shard(layout(tmp_path / "imagenet", images), tmp_path / "out", SMALL)
    got = contents(tmp_path / "out")
    assert set(got) == set(expected)
    about = json.loads(got.pop("_info.json"))
    assert about["coma"].pop("class_words") == list(WORDS.values())
    wanted = json.loads(expected["_info.json"])
    assert wanted["coma"].pop("class_words") is None
    for each in (about, wanted):
        each["coma"].pop("passed_over")  # the tables beside the images
    assert about == wanted
    theirs = ("_info.json", "passed_over.parquet", ".coma-sources.json")
    for name in theirs[1:]:
        got.pop(name)
    assert got == {name: data for name, data in expected.items() if name not in theirs}


def same_images(data, images, prefix):
    """Require that a data set holds just these images of the tree; return their labels, by path."""
    manifest = read_manifest(data)
    rows = range(len(manifest))
    assert len(manifest) == sum(path.startswith(prefix) for path in images)
    sizes = dict(zip(manifest.sources(rows), manifest.size.tolist(), strict=True))
    assert sorted(sizes.values()) == sorted(len(data) for path, data in images.items() if path.startswith(prefix))
    return dict(
        zip(
            manifest.sources(rows),
            manifest.label.tolist() if manifest.label is not None else rows,
            strict=True,
        )
    )


def test_a_tar_of_a_tree(tmp_path, images, caplog):
    caplog.set_level(logging.INFO, "coma")
    folders(tmp_path / "tree", images)
    with tarfile.open(tmp_path / "pets.tar", "w") as tar:
        tar.add(tmp_path / "tree/train", arcname="pets")
    shard(tmp_path / "pets.tar", tmp_path / "out", SMALL)
    labels = same_images(tmp_path / "out", images, "train/")
    assert labels["n02123045/n02123045_7.JPEG"] == 2
    assert "pets.tar holds tars of image folders" in caplog.text


def test_tars_of_samples_are_sharded_anew(tmp_path, images, caplog):
    caplog.set_level(logging.INFO, "coma")
    (tmp_path / "wds").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "wds/some-%06d.tar"), maxcount=4, verbose=0) as writer:
        for i, (path, data) in enumerate(images.items()):
            if path.startswith("train/"):
                writer.write({"__key__": f"{i:05d}", "jpg": data, "cls": i // 3})
    shard(tmp_path / "wds", tmp_path / "out", SMALL)
    labels = same_images(tmp_path / "out", images, "train/")
    assert sorted(labels.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "wds holds tars of WebDataset samples" in caplog.text


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_list_of_paths_and_labels(tmp_path, images, form, caplog):
    import pyarrow as pa
    import pyarrow.parquet as pq

    caplog.set_level(logging.INFO, "coma")
    folders(tmp_path / "tree", images)
    rows = [{"path": f"tree/{path}", "label": path.split("/")[1]} for path in images if path.startswith("train/")]
    if form == "csv":
        with (tmp_path / "list.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    summary = shard(tmp_path / f"list.{form}", tmp_path / "out", SMALL)
    assert summary.classes == 3
    labels = same_images(tmp_path / "out", images, "train/")
    assert labels["tree/train/n02123045/n02123045_7.JPEG"] == 2
    assert read_manifest(tmp_path / "out").class_names == tuple(sorted(WORDS))
    assert f"list.{form} holds a CSV, TSV, text or parquet file of paths and labels" in caplog.text


def test_folders_of_any_depth_without_labels(tmp_path, images):
    folders(tmp_path / "tree", images)
    shard(tmp_path / "tree/train", tmp_path / "out", ShardOptions(shard_bytes=10_000, workers=1, layout="flat"))
    assert read_manifest(tmp_path / "out").label is None


def test_a_folder_of_parquet_can_be_told_to_be_something_else(tmp_path, images):
    hugging_face(tmp_path / "data", images)
    with pytest.raises(DataError, match=r"no images in .*6 files \(6 \.parquet\)"):
        list_source(tmp_path / "data", layout="folder")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("nowhere", {}, "no such file or folder"),
        ("one.jpg", {}, "is one image"),
        ("all.zip", {}, "is packed; unpack it first"),
        ("all.tar.gz", {}, "is packed; unpack it first"),
        ("thesis.tex", {}, "has an unknown format"),
        ("folder", {"layout": "list"}, "--layout list: .* is a folder"),
        ("folder", {"layout": "kaggle"}, "--layout kaggle: there is no ILSVRC/Data/CLS-LOC"),
        ("folder", {"layout": "imagenet"}, "has no ILSVRC2012_img_train.tar"),
        ("folder", {"layout": "tar"}, "--layout tar: there is no .tar"),
        ("folder", {"layout": "webdataset"}, "--layout webdataset: there is no .tar"),
        ("one.jpg", {"layout": "folder"}, "--layout folder: .* is a file"),
        ("folder", {"layout": "fodler"}, "--layout fodler is not one of folder, flat"),
        ("folder", {"root": "."}, "--root . is for a list of paths"),
    ],
)
def test_refusals(tmp_path, name, options, says):
    (tmp_path / "folder").mkdir()
    for file in ("one.jpg", "all.zip", "all.tar.gz", "thesis.tex", "folder/one.jpg"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UsageError, match=says):
        list_source(tmp_path / name, **options)
