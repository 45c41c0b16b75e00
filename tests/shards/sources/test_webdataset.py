"""Tars of WebDataset samples as a source, held against webdataset's own reader."""

import io
import json
import logging
import tarfile

import pytest
import webdataset
from miniatures import of_type

from coma.errors import DataError
from coma.shards.sources.reader import SourceReader
from coma.shards.sources.webdataset import (
    NO_IMAGE,
    is_webdataset,
    list_webdataset,
    samples,
    split_name,
    split_of_sample,
)


def packed(*members):
    """A tar of (name, bytes or TarInfo)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return file.getvalue()


def sampled(tmp_path, *members):
    (tmp_path / "x.tar").write_bytes(packed(*members))
    with (tmp_path / "x.tar").open("rb") as file:
        return list(samples(file.fileno()))


def written(folder, pattern, count, **more):
    """Shards of webdataset's own writer: `count` samples, five a shard."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / pattern), maxcount=5, verbose=0, encoder=False) as writer:
        for i in range(count):
            sample = {"__key__": f"{i:06d}", "jpg": f"image {i}".encode(), "cls": str(i % 3).encode()}
            writer.write(sample | {name: make(i) for name, make in more.items()})
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tar"))


def test_shards_of_webdataset_s_own_writer(tmp_path):
    tars = written(tmp_path, "photos-%04d.tar", 12)
    found = list_webdataset(tmp_path, tars)
    (train,) = found.splits
    assert (found.layout, train.name, found.class_names) == ("webdataset", "train", None)
    assert len(tars) == 3
    assert train.paths[4:6] == ["photos-0000.tar/000004.jpg", "photos-0001.tar/000005.jpg"]
    reader = SourceReader(tmp_path)
    got = {(train.paths[i][-10:-4], reader.read(train.image(i)), train.labels[i]) for i in range(12)}
    reader.close()
    stock = webdataset.WebDataset([str(tmp_path / tar) for tar in tars], shardshuffle=False)
    assert got == {(sample["__key__"], sample["jpg"], int(sample["cls"])) for sample in stock}


def test_splits_and_class_names(tmp_path):
    about = {"json": lambda i: json.dumps({"class_name": "abc"[i % 3], "label": 77}).encode()}
    written(tmp_path, "pets-train-%04d.tar", 6, **about)
    written(tmp_path / "validation", "%06d.tar", 6, **about)
    tars = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tar"))
    found = list_webdataset(tmp_path, tars)
    assert [(split.name, len(split)) for split in found.splits] == [("train", 6), ("val", 6)]
    assert found.class_names == ("a", "b", "c")
    assert found.splits[0].labels.tolist() == [0, 1, 2, 0, 1, 2]  # .cls goes before .json


@pytest.mark.parametrize(
    ("tar", "split"),
    [
        ("pets-train-000.tar", "train"),
        ("pets_val_000.tar", "val"),
        ("Validation/000.tar", "val"),
        ("test-data/train/000.tar", "train"),
        ("imagenet1k-test-0001.tar", "test"),
        ("carnival-0001.tar", "train"),
        ("trainval-0001.tar", "train"),
        ("000.tar", "train"),
    ],
)
def test_split_of(tar, split):
    assert (split_of_sample(tar) or "train") == split


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.seg.png", "x/a.jpg", "x.y/a.JPG", "./a.jpg", "a.", "x/y/a..jpg", "a b.jpg"]
)
def test_keys_are_webdataset_s(name):
    assert split_name(name) == webdataset.tariterators.base_plus_ext(name)


@pytest.mark.parametrize("name", ["a", ".hidden.jpg", "x/.hidden.jpg", "x.y/a", "__meta__", "__x__/a.jpg", "", "x/"])
def test_names_that_are_no_part_of_a_sample(name):
    assert split_name(name) is None


def test_which_member_is_the_image(tmp_path):
    found = sampled(
        tmp_path,
        *(("1.seg.png", b""), ("1.png", b""), ("1.JPEG", b"")),
        *(("2.webp", b""), ("2.bmp", b""), ("2.txt", b"")),
        *(("3.tif", b""), ("3.bmp", b"")),
        *(("4.txt", b""), ("4.seg.png", b"")),
    )
    assert [(sample.key, sample.image and sample.image.name) for sample in found] == [
        ("1", "1.JPEG"),
        ("2", "2.webp"),
        ("3", "3.bmp"),
        ("4", None),
    ]
    assert [extension for extension, _ in found[0].members] == ["seg.png", "png", "JPEG"]


@pytest.mark.parametrize(
    ("sidecar", "label"),
    [
        (("1.cls", b"7"), 7),
        (("1.cls", b" 7\n"), 7),
        (("1.cls", b"cat"), "cat"),
        (("1.cls", b"7.0"), 7),
        (("1.label", b"7"), 7),
        (("1.cls", b"7.5"), None),
        (("1.cls", b"-1"), None),
        (("1.cls", b"99999999999"), None),
        (("1.cls", b"9" * 5000), None),
        (("1.cls", b""), None),
        (("1.json", b'{"label": 7}'), 7),
        (("1.json", b'{"label": true}'), 1),
        (("1.json", b'{"class_id": 7.0}'), 7),
        (("1.json", b'{"label": "cat"}'), "cat"),
        (("1.json", b'{"label": NaN}'), None),
        (("1.json", b'{"label": "7"}'), 7),
        (("1.json", b'{"label": 7.5}'), None),
        (("1.json", b'{"label": -7}'), None),
        (("1.json", b'{"label": ' + b"9" * 5000 + b"}"), None),
        (("1.json", b"[" * 100_000), None),
        (("1.json", b"[1]"), None),
        (("1.json", b"\xff"), None),
        (("1.json", b'{"label": 7}' + b" " * (1 << 20)), None),
        (("1.txt", b"7"), None),
    ],
)
def test_labels(sidecar, label, tmp_path):
    (sample,) = sampled(tmp_path, ("1.jpg", b"x"), sidecar)
    assert sample.label == label
    assert sample.refused is None


def test_some_labels_are_none(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "coma")
    (tmp_path / "x.tar").write_bytes(packed(("1.jpg", b"x"), ("1.cls", b"1"), ("2.jpg", b"y")))
    (train,) = list_webdataset(tmp_path, ["x.tar"]).splits
    assert train.labels is None
    assert "split train is taken without labels: 1 of its 2 images have none" in caplog.text


@pytest.mark.parametrize(
    "names",
    [["a", "b", "a", None], ["a", "b", "c", "b"], ["a", "a", "a", "a"], [7, 7, 7, 7]],
    ids=["one lacks it", "two for one class", "one for two classes", "no text"],
)
def test_class_names_that_do_not_fit(names, tmp_path):
    members = []
    for i, name in enumerate(names):
        about = {"label": i % 2} | ({} if name is None else {"class_name": name})
        members += [(f"{i}.jpg", b"x"), (f"{i}.json", json.dumps(about).encode())]
    (tmp_path / "x.tar").write_bytes(packed(*members))
    found = list_webdataset(tmp_path, ["x.tar"])
    assert found.class_names is None
    assert found.splits[0].labels.tolist() == [0, 1, 0, 1]


def test_odd_and_hostile_samples(tmp_path):
    (tmp_path / "x.tar").write_bytes(
        packed(
            ("../1.jpg", b"x"),
            ("../1.cls", b"1"),
            ("/2.jpg", b"x"),
            ("3.jpg", of_type("3.jpg", tarfile.SYMTYPE)),
            ("3.cls", b"1"),
            ("4.jpg", b"x"),
            ("4.JPG", b"x"),
            *((f"5.{i}", b"") for i in range(1200)),
            ("5.jpg", b"x"),
            ("6.jpg", b"x"),
            *((f"7.jpg.{i}", b"") for i in range(3)),
            ("8.jpg", of_type("8.jpg", tarfile.CHRTYPE)),
        )
    )
    found = list_webdataset(tmp_path, ["x.tar"])
    (train,) = found.splits
    refused = {train.paths[i]: reason for i, reason in train.refused.items()}
    assert refused == {
        "x.tar/../1.jpg": "unsafe name: it leads out of its folder",
        "x.tar//2.jpg": "unsafe name: absolute",
        "x.tar/3.jpg": "link: it has no bytes in the tar",
        "x.tar/4.jpg": "duplicate: the sample has two members .jpg",
        "x.tar/5.jpg": "unreadable: its sample has more than 1,000 members",
        "x.tar/8.jpg": "special: it has no bytes in the tar",
    }  # fmt: skip
    assert set(train.paths) - set(refused) == {"x.tar/6.jpg"}
    assert found.passed_over.counts()[NO_IMAGE] == 1004  # 3.cls, the first thousand of 5, and 7


def test_damaged_tars_are_named_together(tmp_path):
    tars = written(tmp_path, "photos-%04d.tar", 12)
    for tar in tars[:2]:
        data = (tmp_path / tar).read_bytes()
        (tmp_path / tar).write_bytes(data[:1800])
    with pytest.raises(DataError, match=r"2 tars cannot be read: .*0000.tar \(cut .*0001.tar \(cut .* again$"):
        list_webdataset(tmp_path, tars)


def test_detection(tmp_path):
    jpg = ("1.jpg", b"x")
    tars = {
        "cls": (True, [jpg, ("1.cls", b"1")]),
        "caption": (True, [("a/1.txt", b"1"), ("a/1.jpg", b"x")]),
        "flat": (False, [jpg]),
        "flat-0001": (True, [jpg]),
        "classes-0001": (False, [("cat/1.jpg", b"x"), ("dog/1.jpg", b"x")]),
        "readme": (False, [("cat/1.jpg", b"x"), ("cat/readme.txt", b"x")]),
        "words": (False, [("1.txt", b"x"), ("1.json", b"x")]),
        "n01440764": (False, [("n01440764_1.JPEG", b"x")]),
    }
    for name, (expected, members) in tars.items():
        (tmp_path / f"{name}.tar").write_bytes(packed(*members))
        assert is_webdataset(tmp_path, [f"{name}.tar"]) == expected, name
    (tmp_path / "rubbish.tar").write_bytes(b"rubbish")
    assert not is_webdataset(tmp_path, ["rubbish.tar"])
    assert not is_webdataset(tmp_path, ["nowhere.tar"])
    assert not is_webdataset(tmp_path, [])
    (tmp_path / "_info.json").write_text("{}")
    assert is_webdataset(tmp_path, ["flat.tar"])
