"""Tars of image trees: listed in place as the unpacked tree would be; damage and malice by name."""

import io
import logging
import os
import tarfile

import pytest
from miniatures import of_type

from coma.errors import DataError
from coma.shards.sources.folder_names import split_by_folders
from coma.shards.sources.folders import list_folder
from coma.shards.sources.listing import SourceImage
from coma.shards.sources.reader import SourceReader
from coma.shards.sources.tars import list_tars


def packed(members):
    """A tar of {name: bytes}; a value that is a TarInfo goes in as it is."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return file.getvalue()


def put(folder, **tars):
    """Write tars of {member: bytes} by their stems, "__" for a slash; return their names."""
    names = []
    for stem, members in tars.items():
        name = stem.replace("__", "/") + ".tar"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(members if isinstance(members, bytes) else packed(members))
        names.append(name)
    return names


def found(folder, tars):
    """{split: {path: (bytes, class)}} as a reader of the listing gets it."""
    listing, passed_over = list_tars(folder, tars)
    splits, class_names = split_by_folders(listing)
    reader = SourceReader(folder)
    result = {}
    for split in splits:
        result[split.name] = {
            split.paths[i]: (
                reader.read(split.image(i)),
                None if split.labels is None else class_names[split.labels[i]],
            )
            for i in range(len(split))
        }
    reader.close()
    return result, passed_over


SPLITS, CLASSES = ("train", "val"), ("a", "b")
TREE = {
    f"{split}/{name}/{i}.jpg": f"{split}{name}{i}".encode() for split in SPLITS for name in CLASSES for i in range(3)
}


def below(folder, before=""):
    """The part of TREE in a folder, by the paths below it, with something before them."""
    return {before + path.removeprefix(folder): data for path, data in TREE.items() if path.startswith(folder)}


def class_tars(split):
    return {f"{name}.tar": packed(below(f"{split}/{name}/")) for name in CLASSES}


WAYS = {
    "in a folder of the tar's name": {"pets": below("", "pets/")},
    "in other folders": {"x": below("", "deep/er/")},
    "a tar a split": {split: below(f"{split}/") for split in SPLITS},
    "a tar a split, in its folder": {split: below(split, split) for split in SPLITS},
    "a tar a class, in folders": {
        f"{split}__{name}": below(f"{split}/{name}/") for split in SPLITS for name in CLASSES
    },
    "in parts": {f"part{i}": {path: TREE[path] for path in TREE if f"{i}.jpg" in path} for i in range(3)},
    "tars in a tar a split": {split: class_tars(split) for split in SPLITS},
    "tars in a tar": {"all": {f"{split}/{name}": tar for split in SPLITS for name, tar in class_tars(split).items()}},
}


def test_a_tar_is_the_tree_that_it_holds(tmp_path):
    clutter = {
        "train/notes.txt": b"n",
        "train/a/.hidden.jpg": b"h",
        "__MACOSX/a/1.jpg": b"m",
        "train/a/._0.jpg": b"d",
    }
    for path, data in (TREE | clutter).items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(data)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "tree", ".")  # names "./train/a/0.jpg", folders too
    listing, passed_over = list_tars(tmp_path, ["all.tar"])
    tree, beside_tree = list_folder(tmp_path / "tree")
    (ours, names), (theirs, names_of_tree) = split_by_folders(listing), split_by_folders(tree)
    assert names == names_of_tree == ("a", "b")
    assert passed_over.counts() == beside_tree.counts() == {".txt": 1, "hidden": 3}
    for split, of_tree in zip(ours, theirs, strict=True):
        assert split.paths == of_tree.paths
        assert split.labels.tolist() == of_tree.labels.tolist()
        assert split.sizes.tolist() == of_tree.sizes.tolist()
    splits, _ = found(tmp_path, ["all.tar"])
    assert {path: data for split in splits.values() for path, (data, _) in split.items()} == TREE


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_pack_one_tree(way, tmp_path):
    splits, _ = found(tmp_path, put(tmp_path, **WAYS[way]))
    assert splits == {
        split: {path: (data, path.split("/")[1]) for path, data in TREE.items() if path.startswith(split)}
        for split in ("train", "val")
    }


def test_class_tars(tmp_path):
    splits, _ = found(tmp_path, put(tmp_path, n02={"1.jpg": b"2"}, n01={"1.jpg": b"1", "deep/2.jpg": b"d"}))
    assert splits == {
        "train": {"n01/1.jpg": (b"1", "n01"), "n01/deep/2.jpg": (b"d", "n01"), "n02/1.jpg": (b"2", "n02")}
    }


def test_parts_with_the_same_paths_are_told_apart(tmp_path):
    splits, _ = found(tmp_path, put(tmp_path, x={"a/1.jpg": b"1"}, y={"a/1.jpg": b"2"}))
    assert {path: data for path, (data, _) in splits["train"].items()} == {
        "x/a/1.jpg": b"1",
        "y/a/1.jpg": b"2",
    }


def test_a_flat_tar_has_no_classes(tmp_path):
    flat = {"1.jpg": (b"1", None), "2.jpg": (b"2", None)}
    assert found(tmp_path, put(tmp_path, photos={"1.jpg": b"1", "2.jpg": b"2"}))[0] == {"train": flat}
    assert found(tmp_path, put(tmp_path, photos={"photos/1.jpg": b"1", "photos/2.jpg": b"2"}))[0] == {"train": flat}


def test_one_class_keeps_its_folder(tmp_path):
    assert found(tmp_path, put(tmp_path, x={"cat/1.jpg": b"1"}))[0] == {"train": {"cat/1.jpg": (b"1", "cat")}}


def test_hostile_members_are_set_aside_by_name_and_the_rest_goes_on(tmp_path):
    members = {
        "cat/1.jpg": b"1",
        "cat/../../up.jpg": b"u",
        "cat/link.jpg": of_type("cat/link.jpg", tarfile.SYMTYPE),
        "cat/hard.jpg": of_type("cat/hard.jpg", tarfile.LNKTYPE),
        "cat/device.jpg": of_type("cat/device.jpg", tarfile.CHRTYPE),
        "cat/link": of_type("cat/link", tarfile.SYMTYPE),
        "cat/folder.jpg": of_type("cat/folder.jpg", tarfile.DIRTYPE),
        "../up.jpg": b"u",
        "/etc/up.jpg": b"a",
        "../../inner.tar": packed({"x.jpg": b"x"}),
        "dog/2.jpg": b"2",
    }  # fmt: skip
    listing, passed_over = list_tars(tmp_path, put(tmp_path, x=members))
    assert {listing.paths[i]: reason.split(":")[0] for i, reason in listing.refused.items()} == {
        "cat/../../up.jpg": "unsafe name",
        "cat/link.jpg": "link",
        "cat/hard.jpg": "link",
        "cat/device.jpg": "special",
        "../up.jpg": "unsafe name",
        "/etc/up.jpg": "unsafe name",
        "../../inner.tar": "unsafe name",
    }
    assert [path for i, path in enumerate(listing.paths) if i not in listing.refused] == [
        "cat/1.jpg",
        "dog/2.jpg",
    ]
    assert passed_over.counts() == {"no extension": 1}


def test_a_member_that_a_later_one_replaces_is_set_aside(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for data in (b"old", b"newer"):
            info = tarfile.TarInfo("a/1.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    listing, _ = list_tars(tmp_path, ["x.tar"])
    assert listing.sizes.tolist() == [3, 5]
    assert listing.refused == {0: "duplicate: a later member has the same name and replaces it"}


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9/1.jpg")
    listing, _ = list_tars(tmp_path, put(tmp_path, x={name: b"x"}))
    assert listing.paths == [name]


def test_only_one_level_of_tars_is_looked_into(tmp_path):
    inner = packed({"a.jpg": b"a", "deeper.tar": packed({"b.jpg": b"b"})})
    listing, passed_over = list_tars(tmp_path, put(tmp_path, x={"inner.tar": inner, "c/1.jpg": b"c"}))
    assert listing.paths == ["inner/a.jpg", "c/1.jpg"]
    assert passed_over.counts() == {".tar": 1}


def test_all_damaged_tars_are_named_in_one_line(tmp_path):
    good = {"a/1.jpg": b"1" * 600}
    tars = put(
        tmp_path,
        a=good,
        b=packed(good)[:900],
        c={"inner.tar": packed(good)[:900], "b/1.jpg": b"1"},
        d=b"\x1f\x8b" * 999,
    )
    with pytest.raises(DataError) as caught:
        list_tars(tmp_path, [*tars, "e.tar"])
    message = str(caught.value)
    assert message.startswith("4 tars cannot be read: ")
    assert message.endswith("; download or copy what is damaged again")
    assert "\n" not in message
    assert f"{tmp_path / 'b.tar'} (cut short: the member at byte 0 claims 600 bytes, 388 follow)" in message
    assert f"{tmp_path / 'c.tar'} (in inner.tar: cut short: the member at byte 512 claims" in message
    assert f"{tmp_path / 'd.tar'} (not a tar but packed with gzip: unpack it first (gunzip))" in message
    assert f"{tmp_path / 'e.tar'} (No such file or directory)" in message


def test_a_tar_without_its_end_is_warned_of(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "coma")
    put(tmp_path, a=packed({"a/1.jpg": b"1"})[:1024])
    assert len(list_tars(tmp_path, ["a.tar"])[0]) == 1
    assert "does not end like a tar: it may be cut short" in caplog.text


def test_a_tar_that_changes_after_it_was_listed_is_named(tmp_path):
    (tar,) = put(tmp_path, a={"a/1.jpg": b"1"})
    listing, _ = list_tars(tmp_path, [tar])
    os.utime(tmp_path / tar, ns=(1, 1))
    reader = SourceReader(tmp_path)
    image = SourceImage("a/1.jpg", tar, listing.offsets[0], 1, listing.mtimes_ns[0], None, None)
    with pytest.raises(DataError, match=r"a\.tar was changed"):
        reader.read(image)
    reader.close()
