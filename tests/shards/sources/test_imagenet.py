"""Miniatures of ImageNet as it is downloaded: each layout is listed as the tree that people make of it."""

import logging
import shutil

import pytest
from miniatures import VAL, WORDS, devkit, folders, imagenet, kaggle, meta_mat, named, official, packed, write

from coma.errors import DataError
from coma.shards.sources.folder_names import split_by_folders
from coma.shards.sources.folders import list_folder
from coma.shards.sources.imagenet import is_kaggle, is_official, list_kaggle, list_official
from coma.shards.sources.listing import SourceListing
from coma.shards.sources.reader import SourceReader


@pytest.fixture(scope="module")
def images(image):
    return imagenet(image)


@pytest.fixture
def tree(tmp_path, images):
    return listing_of_tree(folders(tmp_path / "tree", images))


def listing_of_tree(root):
    listing, passed_over = list_folder(root)
    splits, class_names = split_by_folders(listing)
    return SourceListing(root, "folder", splits, class_names, passed_over=passed_over)


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
    hostile = devkit() | {"ILSVRC2012_devkit_t12/data/meta.mat": meta_mat().replace(b"n02123045", b"../../../")}
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
    with pytest.raises(DataError, match="has no class for 3 validation images, such as ILSVRC2012_val_0000000"):
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
