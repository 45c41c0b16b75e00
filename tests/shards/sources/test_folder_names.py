"""Splits and classes of trees that people have, from the names of their folders."""

import logging
import unicodedata
from pathlib import Path

import pytest
from miniatures import put

from coma.errors import UsageError
from coma.shards.sources.detect import list_source
from coma.shards.sources.splits import parse_splits

Contents = dict[str, dict[str, str | None]]


def taken(root: Path, **options: object) -> Contents:
    """{split: {path: class}} of what is not set aside."""
    found = list_source(root, **options)
    return {
        split.name: {
            split.paths[i]: None if split.labels is None else (found.class_names or ())[split.labels[i]]
            for i in range(len(split))
            if i not in split.refused
        }
        for split in found.splits
    }


def set_aside(root: Path, **options: object) -> dict[str, str]:
    found = list_source(root, **options)
    return {split.paths[i]: reason for split in found.splits for i, reason in split.refused.items()}


TREES: dict[str, Contents] = {
    "splits of a year": {"train": {"train2017/1.jpg": None}, "val": {"val2017/2.jpg": None}},
    "above the classes": {"train": {"train/cat/1.jpg": "cat"}, "val": {"val/cat/2.jpg": "cat"}},
    "below the classes": {
        "train": {"cat/train/1.jpg": "cat", "dog/train/2.jpg": "dog"},
        "val": {"cat/val/3.jpg": "cat", "dog/val/4.jpg": "dog"},
    },
    "in an archive's own folder": {
        "train": {"pets10/train/cat/1.jpg": "cat", "pets10/train/dog/2.jpg": "dog"},
        "test": {"pets10/test/3.jpg": None},
        "val": {"pets10/val/cat/4.jpg": "cat", "pets10/val/dog/5.jpg": "dog"},
    },
    "two folders deep": {
        "train": {"a/b/train/cat/1.jpg": "cat", "a/b/train/dog/2.jpg": "dog"},
        "val": {"a/b/val/cat/3.jpg": "cat"},
    },
    "in an archive's folder, below the classes": {
        "train": {"pets/cat/train/1.jpg": "cat", "pets/dog/train/2.jpg": "dog"},
        "test": {"pets/cat/test/3.jpg": "cat", "pets/dog/test/4.jpg": "dog"},
    },
    "as YOLO has it": {"train": {"images/train/1.jpg": None}, "val": {"images/val/2.jpg": None}},
    "as Tiny ImageNet has it": {
        "train": {"train/n01/images/1.jpg": "n01", "train/n02/images/2.jpg": "n02"},
        "test": {"test/images/3.jpg": None},
        "val": {"val/images/4.jpg": None},
    },
    "images between": {
        "train": {"train/images/cat/1.jpg": "cat", "train/images/dog/2.jpg": "dog"},
        "val": {"val/images/cat/3.jpg": "cat"},
    },
    "one decoration": {"train": {"pets_train/cat/1.jpg": "cat"}, "test": {"pets_test/cat/2.jpg": "cat"}},
    "several words for one split": {"train": {"train/a/1.jpg": "a"}, "val": {"dev/a/2.jpg": "a", "val/a/3.jpg": "a"}},
    "CIFAR-100's class train": {"train": {"apple/1.jpg": "apple", "train/2.jpg": "train"}},
    "a class train in a split train": {
        "train": {"train/bus/1.jpg": "bus", "train/train/2.jpg": "train"},
        "test": {"test/bus/3.jpg": "bus", "test/train/4.jpg": "train"},
    },
    "classes with such words": {"train": {"bullet_train/1.jpg": "bullet_train", "test_tube/2.jpg": "test_tube"}},
    "only validation": {"val": {"val/cat/1.jpg": "cat", "val/dog/2.jpg": "dog"}},
    "a folder around the classes": {"train": {"photos/cat/1.jpg": "cat", "photos/dog/2.jpg": "dog"}},
    "one class": {"train": {"cat/1.jpg": "cat", "cat/deep/2.jpg": "cat"}},
    "all in images": {"train": {"images/1.jpg": None, "images/2.jpg": None}},
}


@pytest.mark.parametrize("name", TREES)
def test_trees_that_people_have(name: str, tmp_path: Path) -> None:
    tree = TREES[name]
    put(tmp_path, *(path for split in tree.values() for path in split))
    assert taken(tmp_path) == tree


def test_the_splits_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coma")
    taken(put(tmp_path, "train2017/1.jpg", "val/1.jpg", "valid/1.jpg"))
    assert "splits from the folders' names: train (train2017/), val (val/, valid/)" in caplog.text


@pytest.mark.parametrize("name", ["val", "test2017", "Validation images"])
def test_a_source_that_is_one_split(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coma")
    put(tmp_path / name, "cat/1.jpg", "dog/2.jpg")
    assert list(taken(tmp_path / name)) == ["test" if "test" in name else "val"]
    assert "is the source's own name; --splits train=." in caplog.text
    assert list(taken(tmp_path / name, splits=parse_splits("train=."))) == ["train"]


@pytest.mark.parametrize(
    "paths",
    [
        ("cat/1.jpg", "dog/2.jpg", "test/3.jpg"),
        ("cat/1.jpg", "cat/val/2.jpg"),
        ("train/cat/1.jpg", "train/test/2.jpg", "val/cat/3.jpg"),
        ("cat/train/1.jpg", "cat/val/2.jpg", "dog/3.jpg"),
        ("a/train/1.jpg", "a/test/2.jpg", "b/3.jpg", "b/4.jpg"),
        ("photos/dev/1.jpg", "photos/cat/2.jpg"),
    ],
)
def test_names_that_cannot_be_told_are_asked_about(paths: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--splits train=FOLDER,val=FOLDER"):
        taken(put(tmp_path, *paths))
    assert sum(map(len, taken(tmp_path, splits=parse_splits("train=.")).values())) == len(paths)


def test_rules_say_the_splits(tmp_path: Path) -> None:
    put(tmp_path, "cat/2019/1.jpg", "cat/2020/2.jpg", "dog/2019/3.jpg", "dog/2021/4.jpg")
    splits = parse_splits("train=2019,val=2020")
    assert taken(tmp_path, splits=splits) == {
        "train": {"cat/2019/1.jpg": "cat", "dog/2019/3.jpg": "dog"},
        "val": {"cat/2020/2.jpg": "cat"},
    }
    assert set_aside(tmp_path, splits=splits) == {"dog/2021/4.jpg": "outside the splits: no rule of --splits takes it"}


def test_few_images_outside_the_splits_are_set_aside(tmp_path: Path) -> None:
    put(tmp_path, *(f"pets/{split}/{i}.jpg" for split in ("train", "val") for i in range(10)), "pets.png", "docs/a.jpg")
    assert set_aside(tmp_path) == dict.fromkeys(("pets.png", "docs/a.jpg"), "outside the splits: beside train and val")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "annotations/trimaps"),
        ("VOC2012/JPEGImages", "VOC2012/SegmentationClass"),
        ("images/train", "masks/train"),
        ("train/images", "train/labels"),
        ("img", "gt"),
    ],
)
def test_masks_beside_images_are_set_aside(images: str, masks: str, tmp_path: Path) -> None:
    put(tmp_path, *(f"{folder}/{i}.png" for folder in (images, masks) for i in range(5)))
    assert taken(tmp_path) == {"train": {f"{images}/{i}.png": None for i in range(5)}}
    assert {path.rpartition("/")[0] for path in set_aside(tmp_path)} == {masks}
    splits = parse_splits(f"train={masks}")
    assert {path.rpartition("/")[0] for path in taken(tmp_path, splits=splits, layout="flat")["train"]} == {masks}


def test_classes_of_such_names_stay_classes(tmp_path: Path) -> None:
    put(tmp_path, "masks/1.jpg", "hats/2.jpg", "labels/3.jpg")
    assert set(taken(tmp_path)["train"].values()) == {"masks", "hats", "labels"}


def test_one_stray_does_not_take_the_labels_of_all(tmp_path: Path) -> None:
    put(tmp_path, *(f"pets/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(10)), "pets/overview.jpg")
    assert set(taken(tmp_path / "pets")["train"].values()) == {"cat", "dog"}
    stray = "outside the classes: it lies in no class folder"
    assert set_aside(tmp_path / "pets") == {"overview.jpg": stray}
    assert set_aside(tmp_path) == {"pets/overview.jpg": stray}  # in an archive's own folder
    assert set_aside(tmp_path / "pets", layout="flat") == {}


def test_many_images_outside_the_classes_are_asked_about(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "3.jpg")
    with pytest.raises(UsageError, match=r"1 image of split train lies .* 3.jpg.* --layout flat .* --layout folder"):
        taken(tmp_path)
    assert taken(tmp_path, layout="folder") == {"train": {"cat/1.jpg": "cat", "dog/2.jpg": "dog"}}
    assert set(taken(tmp_path, layout="flat")["train"].values()) == {None}


def test_a_flat_folder_with_a_few_folders_has_no_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, *(f"{i}.jpg" for i in range(20)), "thumbs/1.jpg")
    assert set(taken(tmp_path)["train"].values()) == {None}
    assert (
        "split train is taken without labels: 20 of its 21 images lie in no class folder, such as 0.jpg" in caplog.text
    )


@pytest.mark.parametrize("other", [unicodedata.normalize("NFD", "café"), "café ", "caf\u00e9\u200b"])
def test_names_that_look_the_same_are_one_class(other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "train/café/1.jpg", "train/the/2.jpg", f"val/{other}/3.jpg")
    assert set(taken(tmp_path)["val"].values()) == {"café"}
    assert "one class for the folders that are called café" in caplog.text


def test_classes_that_train_has_not_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "val/emu/3.jpg")
    taken(tmp_path)
    assert "split train has no image of 1 class of split val: emu" in caplog.text


def test_file_names_that_speak_of_validation_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken(put(tmp_path, "images/COCO_train2014_1.jpg", "images/COCO_val2014_2.jpg"))
    assert "1 image for training has a name that speaks of validation or test" in caplog.text
    assert "COCO_val2014_2.jpg" in caplog.text


def test_a_table_beside_unlabelled_images_is_pointed_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "my photos", "images/1.jpg", "labels.csv")
    taken(tmp_path / "my photos")
    assert f"coma shard '{tmp_path}/my photos/labels.csv'" in caplog.text
