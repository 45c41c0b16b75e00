import logging
import os

import pytest
from miniatures import put

from coma.errors import DataError, UsageError
from coma.shards.sources.detect import list_source
from coma.shards.sources.folder_names import split_by_folders
from coma.shards.sources.listing import ListingBuilder, printable


def listed(root, **kw):
    found = list_source(root, **kw)
    return {split.name: split for split in found.splits}, found


def test_class_folders(tmp_path, caplog):
    caplog.set_level(logging.INFO, "coma")
    splits, found = listed(put(tmp_path, "b/1.jpg", "b/deeper/2.JPG", "a/3.JPEG"))
    assert found.class_names == ("a", "b")
    assert splits["train"].paths == ["a/3.JPEG", "b/1.jpg", "b/deeper/2.JPG"]
    assert splits["train"].labels.tolist() == [0, 1, 1]
    assert "found 3 images in split train, of 2 classes" in caplog.text


def test_splits_share_their_class_numbers(tmp_path):
    splits, found = listed(put(tmp_path, "train/b/1.jpg", "train/c/1.jpg", "validation/a/2.jpg", "test/c/1.jpg"))
    assert list(splits) == ["train", "test", "val"]
    assert found.class_names == ("a", "b", "c")
    assert [splits[name].labels.tolist() for name in ("train", "val", "test")] == [[1, 2], [0], [2]]


def test_a_split_without_class_folders_is_unlabelled_by_itself(tmp_path, caplog):
    splits, _ = listed(put(tmp_path, "train/b/1.jpg", "val/1.jpg"))
    assert splits["train"].labels.tolist() == [0]
    assert splits["val"].labels is None
    assert "some splits have labels and some have not" in caplog.text


def test_train_may_be_the_name_of_a_class(tmp_path):
    splits, found = listed(put(tmp_path, "train/1.jpg", "bus/1.jpg"))
    assert list(splits) == ["train"]
    assert found.class_names == ("bus", "train")


def test_what_lies_beside_train_and_val_is_set_aside_aloud(tmp_path, caplog):
    splits, _ = listed(put(tmp_path, "train/1.jpg", "val/1.jpg", "extra/1.jpg", "docs/readme.txt"))
    assert list(splits) == ["train", "val"]
    assert splits["train"].paths == ["extra/1.jpg", "train/1.jpg"]
    assert splits["train"].refused == {0: "outside the splits: beside train and val"}
    assert "1 image is set aside unread, such as extra/1.jpg (outside the splits: beside" in caplog.text


def test_clutter_is_passed_over_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "coma")
    put(
        tmp_path,
        "a/1.jpg",
        "a/Thumbs.db",
        "a/.hidden.jpg",
        ".git/x.jpg",
        "__MACOSX/a/1.jpg",
        "notes.txt",
        "a/README",
    )
    splits, found = listed(tmp_path)
    assert splits["train"].paths == ["a/1.jpg"]
    assert found.passed_over.counts() == {"hidden": 3, ".db": 1, ".txt": 1, "no extension": 1}
    assert "passed over 6 files (3 hidden, 1 .db, 1 .txt, 1 no extension): no images" in caplog.text


def test_links_are_followed_but_never_round_in_a_circle(tmp_path, caplog):
    put(tmp_path, "real/a/1.jpg", "tree/b/2.jpg")
    (tmp_path / "tree/a").symlink_to(tmp_path / "real/a")
    (tmp_path / "tree/b/3.jpg").symlink_to(tmp_path / "real/a/1.jpg")
    (tmp_path / "tree/b/up").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/b/self.jpg").symlink_to(tmp_path / "tree/b/self.jpg")
    (tmp_path / "tree/b/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    splits, _ = listed(tmp_path / "tree")
    assert splits["train"].paths == ["a/1.jpg", "b/2.jpg", "b/3.jpg", "b/gone.jpg", "b/self.jpg"]
    assert splits["train"].sizes.tolist() == [1, 1, 1, -1, -1]
    assert "passed over b/up" in caplog.text


def test_the_excluded_folder_is_not_looked_into(tmp_path):
    put(tmp_path, "a/1.jpg", "out/2.jpg")
    splits, found = listed(tmp_path, exclude=tmp_path / "out")
    assert splits["train"].paths == ["a/1.jpg"]
    assert found.class_names == ("a",)


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"caf\xe9/1.jpg")).write_bytes(b"x")
    splits, found = listed(tmp_path)
    assert found.class_names == ("caf\\xe9",)
    assert printable(splits["train"].paths[0]) == "caf\\xe9/1.jpg"


def test_refusals(tmp_path):
    put(tmp_path, "file.jpg", "words/1.txt")
    with pytest.raises(UsageError, match="no such file or folder"):
        list_source(tmp_path / "nope")
    with pytest.raises(UsageError, match="is one image; give the folder"):
        list_source(tmp_path / "file.jpg")
    with pytest.raises(DataError, match=r"no images in .*; it has 1 file \(1 .txt\)"):
        list_source(tmp_path / "words")


def listing(*paths):
    """A listing of these paths; "!" before one means that it is refused."""
    made = ListingBuilder()
    for path in paths:
        made.add(path.removeprefix("!"), 1, 0, refused="link: x" if path.startswith("!") else None)
    return made


@pytest.mark.parametrize("hostile", ["../x.jpg", "/etc/x.jpg", "x.jpg", "zzz/x.jpg", "train/../x.jpg"])
@pytest.mark.parametrize(
    "paths",
    [
        ["train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg"],
        ["a/1.jpg", "b/2.jpg"],
        ["train/a/1.jpg"],
        ["1.jpg"],
        ["val/1.jpg", "train/a/1.jpg"],
    ],
)
def test_refused_images_have_no_say_in_splits_and_classes(paths, hostile):
    plain, names = split_by_folders(listing(*paths))
    splits, same_names = split_by_folders(listing(*paths, f"!{hostile}"))
    assert same_names == names
    assert sum(map(len, splits)) == len(paths) + 1
    assert [split.name for split in splits] == [split.name for split in plain]
    for split, expected in zip(splits, plain, strict=True):
        kept = [i for i in range(len(split)) if i not in split.refused]
        assert [split.paths[i] for i in kept] == expected.paths
        assert (split.labels is None) == (expected.labels is None)
        assert split.labels is None or split.labels[kept].tolist() == expected.labels.tolist()


def test_nothing_but_refused():
    splits, names = split_by_folders(listing("!../x.jpg", "!cat/1.jpg"))
    assert sum(map(len, splits)) == 2
    assert names is None
