"""Which picture is the mask of which image, in the layouts that people have, and what the values of masks mean."""

import logging
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from drawn import encoded
from masked import as_png, draw_ids, draw_pairs, picture_of

from coma.errors import UsageError
from coma.shards.manifest import read_manifest
from coma.shards.manifest.mask_coding import MaskCoding
from coma.shards.sources.detect import list_source
from coma.shards.sources.listing import SourceListing
from coma.shards.sources.masks.options import MaskOptions
from coma.shards.sources.splits import parse_splits
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard


def pairs(found: SourceListing) -> dict[str, dict[str, str]]:
    """{split: {image: mask}} of what is not set aside."""
    return {
        split.name: {path: split.masks.paths[i] for i, path in enumerate(split.paths) if i not in split.refused}
        for split in found.splits
        if split.masks is not None
    }


def refused(found: SourceListing) -> dict[str, str]:
    return {split.paths[i]: reason for split in found.splits for i, reason in split.refused.items()}


def coding(found: SourceListing) -> MaskCoding:
    assert found.mask_coding is not None
    return found.mask_coding


def draw(root: Path, files: dict[str, str]) -> Path:
    """Draw {image: mask}."""
    for number, (image, mask) in enumerate(files.items()):
        ids = draw_ids(number)
        for path, data in ((image, picture_of(ids, number)), (mask, as_png(ids))):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
    return root


TREES: dict[str, dict[str, dict[str, str]]] = {
    "images and masks": {"train": {"images/1.jpg": "masks/1.png", "images/2.jpg": "masks/2.png"}},
    "splits below": {
        "train": {"images/train/1.jpg": "masks/train/1.png"},
        "val": {"images/val/1.jpg": "masks/val/1.png"},
    },
    "splits above": {
        "train": {"train/images/1.jpg": "train/labels/1.png"},
        "val": {"val/images/2.jpg": "val/labels/2.png"},
    },
    "an archive's own folder": {"train": {"roads/img/1.jpg": "roads/gt/1.png"}},
    "annotations of a kind": {"train": {"images/1.jpg": "annotations/trimaps/1.png"}},
    "a word in the mask's name": {"train": {"images/1.jpg": "masks/1_mask.png", "images/2.jpg": "masks/2_mask.png"}},
    "words in both names": {"train": {"1_sat.jpg": "1_mask.png", "2_sat.jpg": "2_mask.png"}},
    "in one folder": {"train": {"1.jpg": "1_seg.png", "2.jpg": "2_seg.png"}},
    "beside the folder of masks": {"train": {"1.jpg": "masks/1.png", "2.jpg": "masks/2.png"}},
    "as Carvana has it": {"train": {"train/1.jpg": "train_masks/1_mask.png", "train/2.jpg": "train_masks/2_mask.png"}},
    "as CamVid has it": {
        "train": {"train/1.png": "train_labels/1_L.png"},
        "val": {"val/2.png": "val_labels/2_L.png"},
    },
    "as Cityscapes has it, labels alone": {
        "train": {
            "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png": "gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png",
            "leftImg8bit/train/ulm/ulm_0_2_leftImg8bit.png": "gtFine/train/ulm/ulm_0_2_gtFine_labelIds.png",
        },
        "val": {"leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png": "gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png"},
    },
    "capitals": {"train": {"Images/1.JPG": "Masks/1.PNG"}},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_pairs(tree: dict[str, dict[str, str]], tmp_path: Path) -> None:
    source = draw(tmp_path / "source", {image: mask for split in tree.values() for image, mask in split.items()})
    found = list_source(source)
    assert found.layout == "masks"
    assert pairs(found) == tree
    assert refused(found) == {}
    assert {split.name for split in found.splits} == tree.keys()


def test_every_path_is_in_one_account(tmp_path: Path) -> None:
    draw_pairs(tmp_path, 20)
    (tmp_path / "masks/7.png").unlink()
    (tmp_path / "images/9.jpg").unlink()
    (tmp_path / "masks/readme.txt").write_text("x")
    found = list_source(tmp_path)
    assert refused(found) == {
        "images/7.jpg": "mask missing: no mask goes by the image's name",
        "masks/9.png": "mask without image: no image goes by its name",
    }
    accounts = Counter(path for split in found.splits for path in split.paths)
    accounts += Counter(path for split in found.splits if split.masks is not None for path in split.masks.paths if path)
    accounts += Counter(found.passed_over.paths)
    assert accounts == Counter(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))


def test_a_split_without_masks_is_taken_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw_pairs(tmp_path, 3, images="images/train/{}.jpg", masks="masks/train/{}.png")
    (tmp_path / "images/test").mkdir()
    (tmp_path / "images/test/1.jpg").write_bytes(encoded(1))
    found = list_source(tmp_path)
    assert {split.name: split.masks is not None for split in found.splits} == {"train": True, "test": False}
    assert refused(found) == {}
    assert "split test has no masks" in caplog.text


def test_many_images_without_a_mask_are_a_question(tmp_path: Path) -> None:
    draw_pairs(tmp_path, 8)
    for number in range(4):
        (tmp_path / f"masks/{number}.png").unlink()
    with pytest.raises(
        UsageError, match=r"4 of 8 images of split train, such as images/0.jpg, have no mask: .*--masks none"
    ):
        list_source(tmp_path)
    found = list_source(tmp_path, layout="masks")
    assert len(refused(found)) == 4
    assert len(pairs(found)["train"]) == 4
    alone = list_source(tmp_path, masks=MaskOptions("none"))
    assert len(refused(alone)) == 4  # the masks
    assert alone.mask_coding is None


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for name in ("color", "instanceIds", "labelIds"):
        draw_pairs(
            tmp_path,
            3,
            images="leftImg8bit/train/ulm/ulm_{}_leftImg8bit.png",
            masks=f"gtFine/train/ulm/ulm_{{}}_gtFine_{name}.png",
        )
    return tmp_path


def test_several_masks_are_a_question_and_names_the_answer(cityscapes: Path) -> None:
    with pytest.raises(
        UsageError, match=r"3 images have several masks, .*_gtFine_color.png, .*--masks '\*_labelIds.png'"
    ):
        list_source(cityscapes)
    for pattern in ("*_labelIds.png", "gtFine/*_gtFine_labelIds.png"):
        found = list_source(cityscapes, masks=MaskOptions(pattern))
        assert list(pairs(found)["train"].values()) == [
            f"gtFine/train/ulm/ulm_{i}_gtFine_labelIds.png" for i in range(3)
        ]
        assert set(refused(found)) == {
            f"gtFine/train/ulm/ulm_{i}_gtFine_{name}.png" for i in range(3) for name in ("color", "instanceIds")
        }


def test_a_folder_by_name(tmp_path: Path) -> None:
    draw_pairs(tmp_path, 3, images="pixels/train/{}.jpg", masks="truth/train/{}.png")
    found = list_source(tmp_path, masks=MaskOptions("truth"))
    assert pairs(found) == {"train": {f"pixels/train/{i}.jpg": f"truth/train/{i}.png" for i in range(3)}}
    with pytest.raises(UsageError, match=r"--masks lies: no picture in .* goes by the name of another"):
        list_source(tmp_path, masks=MaskOptions("lies"))


def test_splits_and_classes_of_images_are_told_as_before(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        draw_pairs(tmp_path, 3, images=f"images/{name}/{{}}.jpg", masks=f"masks/{name}/{{}}.png")
    found = list_source(tmp_path)
    assert found.class_names == ("cat", "dog")
    found = list_source(tmp_path, splits=parse_splits("train=images/cat,val=images/dog"))
    assert {split: len(of_split) for split, of_split in pairs(found).items()} == {"train": 3, "val": 3}


@pytest.mark.parametrize("layout", ["folder", "flat"])
def test_layouts_without_masks_set_them_aside_as_before(layout: str, tmp_path: Path) -> None:
    draw_pairs(tmp_path, 3)
    found = list_source(tmp_path, layout=layout)
    assert found.mask_coding is None
    assert set(refused(found)) == {f"masks/{i}.png" for i in range(3)}


@pytest.mark.parametrize("kind", ["colours", "jpeg", "damaged"])
def test_what_cannot_be_masks_is_set_aside_with_one_line(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(3):
        ids = draw_ids(i)
        data = {"colours": picture_of(ids, form="PNG"), "jpeg": picture_of(ids), "damaged": as_png(ids)[:60]}[kind]
        for path, of_path in ((f"images/{i}.jpg", picture_of(ids)), (f"masks/{i}.png", data)):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(of_path)
    found = list_source(tmp_path)
    assert found.mask_coding is None
    assert set(refused(found)) == {f"masks/{i}.png" for i in range(3)}
    reason = {"colours": "three channels; save class ids", "jpeg": "is a JPEG", "damaged": "mask damaged"}[kind]
    assert reason in caplog.text
    with pytest.raises(UsageError, match=reason):
        list_source(tmp_path, layout="masks")


def test_masks_in_a_tar(tmp_path: Path) -> None:
    draw_pairs(tmp_path / "files", 3, images="roads/images/{}.jpg", masks="roads/masks/{}.png")
    (tmp_path / "source").mkdir()
    with tarfile.open(tmp_path / "source/roads.tar", "w") as tar:
        tar.add(tmp_path / "files/roads", "roads")
    found = list_source(tmp_path / "source")
    assert found.layout == "tar"
    assert pairs(found) == {"train": {f"images/{i}.jpg": f"masks/{i}.png" for i in range(3)}}
    shard(tmp_path / "source", tmp_path / "out", ShardOptions(workers=1))
    assert read_manifest(tmp_path / "out").mask_classes == ("0", "1", "2", "3")
    assert list_source(tmp_path / "source", masks=MaskOptions("none")).mask_coding is None


def test_classes_open(tmp_path: Path) -> None:
    draw_pairs(tmp_path, 3)
    assert coding(list_source(tmp_path)).classes is None
    assert coding(list_source(tmp_path, masks=MaskOptions(classes="7"))).classes == tuple("0123456")
    from_one = coding(list_source(tmp_path, masks=MaskOptions(classes="3", ignored=0)))
    assert (from_one.values, from_one.ignored) == ((1, 2, 3), 0)
    none_ignored = coding(list_source(tmp_path, masks=MaskOptions(classes="3", ignored="none")))
    assert none_ignored.ignored is None


def test_a_file_of_names_beside_the_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coma")
    draw_pairs(tmp_path, 3)
    (tmp_path / "classes.txt").write_text("# the classes\nroad\nsky line\ncar\nä\n", "utf-8")
    found = list_source(tmp_path)
    assert coding(found).classes == ("road", "sky line", "car", "ä")
    assert "4 from classes.txt" in caplog.text
    (tmp_path / "masks/labels.txt").write_text("a\nb\n")
    with pytest.raises(UsageError, match=r"classes.txt and masks/labels.txt may name the classes"):
        list_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 background\n255 object\n", MaskCoding(("background", "object"), (0, 255), None)),
        ("7: road\n8: pavement\n", MaskCoding(("road", "pavement"), (7, 8), 255)),
        ("128 64 0 road\n0,0,192,pole\n", MaskCoding(("road", "pole"), (0x804000, 0x0000C0), None, True)),
    ],
)
def test_files_of_values(text: str, expected: MaskCoding, tmp_path: Path) -> None:
    draw_pairs(tmp_path / "source", 3)
    (tmp_path / "names").write_text(text)
    assert coding(list_source(tmp_path / "source", masks=MaskOptions(classes=str(tmp_path / "names")))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class; write one class a line"),
        ("road\n7 sky\n", "lines of several kinds"),
        ("7 road\n7 sky\n", "the line `7 sky` has a value that is impossible or not the only one"),
        ("300 0 0 road\n", "a value that is impossible"),
        ("".join(f"n{i}\n" for i in range(256)), "256 classes of masks: give 1 to 255"),
    ],
)
def test_files_that_name_no_classes(text: str, message: str, tmp_path: Path) -> None:
    draw_pairs(tmp_path / "source", 3)
    (tmp_path / "names").write_text(text)
    with pytest.raises(UsageError, match=message):
        list_source(tmp_path / "source", masks=MaskOptions(classes=str(tmp_path / "names")))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    draw_pairs(tmp_path, 3)
    with pytest.raises(UsageError, match=r"--mask-classes nowhere.txt cannot be read: No such file"):
        list_source(tmp_path, masks=MaskOptions(classes="nowhere.txt"))


def test_black_and_white_is_a_question(tmp_path: Path) -> None:
    values = np.array([0, 255] * 128, np.uint8)
    draw_pairs(tmp_path, 3, classes=2, values=values)
    with pytest.raises(UsageError, match=r"hold 0 and 255 alone: .*`255 object`.*--mask-ignore 255"):
        list_source(tmp_path)
    assert coding(list_source(tmp_path, masks=MaskOptions(ignored=255))).ignored == 255


def test_options_without_masks(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded(1))
    with pytest.raises(UsageError, match=r"--mask-classes 3: .* is taken without masks, as folders of images"):
        list_source(tmp_path, masks=MaskOptions(classes="3"))
    with pytest.raises(UsageError, match=r"--layout masks: no picture in"):
        list_source(tmp_path, layout="masks")


def ade20k(root: Path) -> Path:
    base = root / "ADEChallengeData2016"
    drawn = {}
    for split, name in (("training", "train"), ("validation", "val")):
        drawn |= draw_pairs(
            base,
            3,
            images=f"images/{split}/ADE_{name}_{{:08d}}.jpg",
            masks=f"annotations/{split}/ADE_{name}_{{:08d}}.png",
            values=(np.arange(256) + 1).astype(np.uint8),  # 255 → 0
        )
    lines = [f"{i + 1}\t0.1\t9\t9\t1\tthing {i}, item" for i in range(150)]
    (base / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *lines, ""]))
    scenes = [f"{Path(path).stem} {('street', 'beach')[i % 2]}" for i, path in enumerate(drawn)]
    (base / "sceneCategories.txt").write_text("\n".join([*scenes, ""]))
    return root


def test_ade20k(tmp_path: Path) -> None:
    source = ade20k(tmp_path)
    for place in (source, source / "ADEChallengeData2016"):
        found = list_source(place)
        assert found.layout == "ade20k"
        assert {split: len(of_split) for split, of_split in pairs(found).items()} == {"train": 3, "val": 3}
        assert coding(found).classes == tuple(f"thing {i}" for i in range(150))
        assert (coding(found).values, coding(found).ignored) == (tuple(range(1, 151)), 0)
        assert found.class_names == ("beach", "street")
        assert [split.labels.tolist() for split in found.splits if split.labels is not None] == [[1, 0, 1], [0, 1, 0]]
    with pytest.raises(UsageError, match=r"--layout ade20k: there is no objectInfo150.txt"):
        list_source(source / "ADEChallengeData2016/images", layout="ade20k")


def voc(root: Path) -> Path:
    base = root / "VOCdevkit/VOC2012"
    draw_pairs(base, 6, images="JPEGImages/2007_{:06d}.jpg", masks="SegmentationClass/2007_{:06d}.png")
    draw_pairs(base, 6, images="JPEGImages/2007_{:06d}.jpg", masks="SegmentationObject/2007_{:06d}.png")
    draw_pairs(base, 1, images="JPEGImages/2008_{:06d}.jpg", masks="Annotations/2008_{:06d}.xml")
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    names = [f"2007_{i:06d}" for i in range(6)]
    for name, of_list in (("train", names[:4]), ("val", names[4:]), ("trainval", names)):
        (lists / f"{name}.txt").write_text("\n".join([*of_list, ""]))
    return root


def test_voc(tmp_path: Path) -> None:
    source = voc(tmp_path)
    for place in (source, source / "VOCdevkit", source / "VOCdevkit/VOC2012"):
        found = list_source(place)
        assert found.layout == "voc"
        assert {split: len(of_split) for split, of_split in pairs(found).items()} == {"train": 4, "val": 2}
        assert all("SegmentationClass" in mask for of_split in pairs(found).values() for mask in of_split.values())
        assert (coding(found).classes or ())[-1:] == ("tvmonitor",)
        assert (len(coding(found).values), coding(found).ignored) == (21, 255)
        kinds = Counter(reason.split(":")[0] for reason in refused(found).values())
        assert kinds == {"masks": 6, "outside the splits": 1}
    with pytest.raises(UsageError, match=r"--splits: .* has its own in ImageSets"):
        list_source(source, splits=parse_splits("train=."))
