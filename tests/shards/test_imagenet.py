"""Miniatures of ImageNet as it is downloaded: each layout is listed as the tree that people make of it."""

import io
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from coma.errors import DataError
from coma.shards.sources.imagenet import is_kaggle, is_official, list_kaggle, list_official
from coma.shards.sources.model import Sources
from coma.shards.sources.read import SourceReader
from coma.shards.sources.tree import arranged, list_tree

WORDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus", "n02123045": "tabby"}
IDS = {"n02123045": 1, "n01440764": 2, "n01443537": 3}  # not in the order of the wnids
GROUPS = {"n00000001": 1001, "n02075296": 1002}
VAL = ["n02123045", "n01440764", "n01440764", "n01443537", "n02123045"]  # of images 1 to 5


@pytest.fixture(scope="module")
def images(image):
    """{path in the tree: bytes}."""
    paths = [f"train/{wnid}/{wnid}_{i * 7}.JPEG" for wnid in WORDS for i in (1, 10, 2)]
    paths += [f"val/{wnid}/ILSVRC2012_val_{i:08}.JPEG" for i, wnid in enumerate(VAL, 1)]
    paths += [f"test/ILSVRC2012_test_{i:08}.JPEG" for i in range(1, 4)]
    return {path: image(seed, 16, 12) for seed, path in enumerate(paths)}


@pytest.fixture
def tree(tmp_path, images):
    for path, data in images.items():
        write(tmp_path / "tree" / path, data)
    return listing_of_tree(tmp_path / "tree")


def listing_of_tree(root):
    listing, ignored = list_tree(root)
    splits, class_names = arranged(listing)
    return Sources(root, "folder", splits, class_names, ignored=ignored)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def packed(members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def named(images, folder):
    """{name: bytes} of the images in a folder."""
    return {path.rsplit("/", 1)[1]: data for path, data in images.items() if path.startswith(f"{folder}/")}


def meta_mat():
    """The devkit's table of synsets: 1000 classes and the groups above them; here 3 and 2."""
    from scipy.io import savemat

    kinds = [
        *(("ILSVRC2012_ID", float), ("WNID", object), ("words", object), ("gloss", object)),
        *(("num_children", float), ("children", object), ("wordnet_height", float), ("num_train_images", float)),
    ]  # fmt: skip
    rows = [
        (float(number), wnid, WORDS[wnid], "a fish or a cat", 0.0, np.empty((1, 0)), 0.0, 3.0)
        for wnid, number in IDS.items()
    ]
    rows += [
        (float(number), wnid, "group", "of classes", 2.0, np.array([[1.0, 2.0]]), 1.0, 0.0)
        for wnid, number in GROUPS.items()
    ]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array([[row] for row in rows], dtype=kinds)})
    return file.getvalue()


def devkit(val=VAL):
    return {
        "ILSVRC2012_devkit_t12/readme.txt": b"read me",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{IDS[wnid]}\n" for wnid in val
        ).encode(),
    }


def official(folder, images, truth=VAL):
    classes = {f"{wnid}.tar": packed(named(images, f"train/{wnid}")) for wnid in reversed(WORDS)}
    val = dict(sorted(named(images, "val").items(), reverse=True))
    test = {f"test/{name}": data for name, data in named(images, "test").items()}
    write(folder / "ILSVRC2012_img_train.tar", packed(classes))
    write(folder / "ILSVRC2012_img_val.tar", packed(val))
    write(folder / "ILSVRC2012_img_test_v10102019.tar", packed(test))
    write(folder / "ILSVRC2012_devkit_t12.tar.gz", packed(devkit(truth), "w:gz"))
    write(folder / "ILSVRC2012_img_train_t3.tar", b"the dogs of another task")
    return folder


def kaggle(folder, images):
    base = folder / "ILSVRC/Data/CLS-LOC"
    lines = ["ImageId,PredictionString"]
    for path, data in images.items():
        name = path.rsplit("/", 1)[1]
        write(base / (f"val/{name}" if path.startswith("val/") else path), data)
        if path.startswith("val/"):
            lines.insert(1, f"{name[:-5]},{path.split('/')[1]} 1 2 30 40 {path.split('/')[1]} 5 6 70 80 ")
    write(folder / "LOC_val_solution.csv", "\r\n".join(lines).encode())
    write(
        folder / "LOC_synset_mapping.txt",
        "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()).encode(),
    )
    write(folder / "ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_7.xml", b"<annotation>")
    write(folder / "ILSVRC/ImageSets/CLS-LOC/train_cls.txt", b"n01440764/n01440764_7 1")
    return folder


def assert_same(found, tree):
    assert found.class_names == tree.class_names
    readers = SourceReader(found.root), SourceReader(tree.root)
    for split, expected in zip(found.splits, tree.splits, strict=True):
        assert split.name == expected.name
        assert list(split.paths) == list(expected.paths)
        assert split.sizes.tolist() == expected.sizes.tolist()
        assert (split.labels is None) == (expected.labels is None)
        assert split.labels is None or split.labels.tolist() == expected.labels.tolist()
        for i in range(len(split)):
            assert readers[0].read(split.image(i)) == readers[1].read(expected.image(i))
    for reader in readers:
        reader.close()


def test_the_tree_is_what_it_should_be(tree):
    assert tree.class_names == tuple(WORDS)
    assert [(split.name, len(split), split.labels is None) for split in tree.splits] == [
        ("train", 9, False),
        ("test", 3, True),
        ("val", 5, False),
    ]


@pytest.mark.parametrize("unpacked", [False, True], ids=["devkit packed", "devkit unpacked"])
def test_official_tars(unpacked, tmp_path, images, tree):
    folder = official(tmp_path / "official", images)
    if unpacked:
        (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
        for path, data in devkit().items():
            write(folder / path, data)
    assert is_official(folder)
    heard = []
    found = list_official(folder, heard.append)
    assert_same(found, tree)
    assert found.layout == "imagenet"
    assert found.class_words == tuple(WORDS.values())
    assert not heard  # fewer than a thousand


@pytest.mark.parametrize("base", ["", "ILSVRC"])
def test_kaggle(base, tmp_path, images, tree, caplog):
    folder = kaggle(tmp_path / "kaggle", images) / base
    assert is_kaggle(folder)
    found = list_kaggle(folder)
    assert_same(found, tree)
    assert found.layout == "kaggle"
    assert found.class_words == tuple(WORDS.values())
    assert not caplog.records


def test_what_is_neither(tmp_path, images):
    assert not is_official(tmp_path)
    assert not is_official(tmp_path / "nowhere")
    assert not is_kaggle(tmp_path)
    write(tmp_path / "pets.tar", b"")
    assert not is_official(tmp_path / "pets.tar")
    assert not is_official(official(tmp_path / "official", images) / "ILSVRC2012_img_train_t3.tar")


def test_one_tar_of_the_official_ones(tmp_path, images, tree):
    folder = official(tmp_path, images)
    only = list_official(folder / "ILSVRC2012_img_val.tar")
    assert is_official(folder / "ILSVRC2012_img_val.tar")
    assert [split.name for split in only.splits] == ["val"]
    assert only.splits[0].labels.tolist() == tree.splits[2].labels.tolist()


def test_without_the_devkit_val_is_unlabelled_aloud(tmp_path, images, caplog):
    caplog.set_level(logging.WARNING, "coma")
    folder = official(tmp_path, images)
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    found = {split.name: split for split in list_official(folder).splits}
    assert found["val"].labels is None
    assert found["val"].paths[0] == "val/ILSVRC2012_val_00000001.JPEG"
    assert found["train"].labels is not None
    assert "put ILSVRC2012_devkit_t12.tar.gz, which has their classes, into" in caplog.text


def test_a_devkit_that_does_not_fit_or_is_damaged(tmp_path, images):
    with pytest.raises(DataError, match="has the classes of 4 validation images, the tar has 5 images"):
        list_official(official(tmp_path / "a", images, truth=VAL[:4]))
    folder = official(tmp_path / "b", images)
    kit = folder / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(kit.read_bytes()[:300])
    with pytest.raises(DataError, match=r"devkit .*\.tar\.gz cannot be read .*; download it again"):
        list_official(folder)
    kit.unlink()
    kit.with_suffix("").with_suffix("").mkdir()
    with pytest.raises(DataError, match=r"devkit .*t12 cannot be read .*No such file"):
        list_official(folder)
    hostile = devkit() | {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat().replace(b"n02123045", b"../../../")
    }
    for path, data in hostile.items():
        write(folder / path, data)
    with pytest.raises(DataError, match=r"has the WNID '\.\./"):
        list_official(folder)
    write(folder / "ILSVRC2012_devkit_t12/data/meta.mat", meta_mat()[:400])
    with pytest.raises(DataError, match="cannot be read"):
        list_official(folder)


def test_a_damaged_class_in_the_tar_of_tars_is_named(tmp_path, images):
    classes = {f"{wnid}.tar": packed(named(images, f"train/{wnid}")) for wnid in WORDS}
    classes["n01443537.tar"] = classes["n01443537.tar"][:1500]
    write(tmp_path / "ILSVRC2012_img_train.tar", packed(classes))
    with pytest.raises(DataError, match=r"img_train.tar \(in n01443537.tar: cut short: .* byte"):
        list_official(tmp_path)


def test_kaggle_without_its_csv(tmp_path, images, caplog):
    folder = kaggle(tmp_path, images)
    (folder / "LOC_val_solution.csv").unlink()
    found = {split.name: split for split in list_kaggle(folder).splits}
    assert found["val"].labels is None
    assert "put LOC_val_solution.csv into" in caplog.text


def test_kaggle_s_csv_and_images_must_fit(tmp_path, images, caplog):
    folder = kaggle(tmp_path, images)
    (folder / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG").unlink()
    assert len(list_kaggle(folder)) == len(images) - 1
    assert "names 1 validation images that are not there, such as ILSVRC2012_val_00000002" in caplog.text
    solution = folder / "LOC_val_solution.csv"
    text = solution.read_text()
    solution.write_text("\n".join(text.splitlines()[:2]))
    with pytest.raises(
        DataError, match="has no class for 3 validation images, such as ILSVRC2012_val_0000000"
    ):
        list_kaggle(folder)
    solution.write_text(text.replace("n01443537 1", "../../etc 1"))
    with pytest.raises(DataError, match=r"LOC_val_solution.csv, line 3: .* is not an image and its classes"):
        list_kaggle(folder)


def test_kaggle_s_val_in_class_folders_already(tmp_path, images, tree):
    folder = kaggle(tmp_path / "kaggle", images)
    val = folder / "ILSVRC/Data/CLS-LOC/val"
    shutil.rmtree(val)
    shutil.copytree(tmp_path / "tree/val", val)
    assert_same(list_kaggle(folder), tree)


def test_the_excluded_folder_is_not_looked_into(tmp_path, images, tree):
    folder = kaggle(tmp_path / "kaggle", images)
    write(folder / "ILSVRC/Data/CLS-LOC/train/out/1.jpg", b"x")
    assert_same(list_kaggle(folder, exclude=folder / "ILSVRC/Data/CLS-LOC/train/out"), tree)
