import json
import logging
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coma.errors import DataError, UsageError
from coma.shards.sources.parquet.images import list_parquet
from coma.shards.sources.path_list import list_paths

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(file, columns, features=None, **options):
    """Write a parquet file as `datasets` would, with its metadata if there are `features`."""
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}}), "other": "x"}
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, **options)
    return file


def images(*data, paths=None):
    paths = paths or [None] * len(data)
    return pa.array([{"bytes": b, "path": p} for b, p in zip(data, paths, strict=True)], IMAGE)


CATS = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
}


def split(sources, name="train"):
    return next(split for split in sources.splits if split.name == name)


def test_hugging_face_files_are_listed_with_splits_and_class_names(tmp_path):
    data = tmp_path / "pets" / "data"
    rows = {"image": images(b"a", b"bb", b"", paths=["x.PNG", "../y.jpeg", "z"]), "label": [1, 0, 1]}
    write(data / "train-00000-of-00002.parquet", rows, CATS, row_group_size=2)
    write(data / "train-00001-of-00002.parquet", {"image": images(b"c"), "label": [0]}, CATS)
    write(data / "validation-00000-of-00001.parquet", {"image": images(b"dddd"), "label": [1]}, CATS)
    (tmp_path / "pets" / "README.md").write_text("pets")
    heard = []
    sources = list_parquet(tmp_path / "pets", None, None, heard.append)
    assert (sources.root, sources.layout) == (tmp_path / "pets", "parquet")
    assert sources.class_names == ("cat", "dog")
    assert sources.image_column == "image.bytes"
    assert [split.name for split in sources.splits] == ["train", "val"]
    train = split(sources)
    first = "data/train-00000-of-00002.parquet"
    assert train.paths == [
        f"{first}/000000000.PNG",
        f"{first}/000000001.jpeg",
        f"{first}/000000002",
        "data/train-00001-of-00002.parquet/000000000",
    ]
    assert train.files == [first] * 3 + ["data/train-00001-of-00002.parquet"]
    assert train.offsets.tolist() == [0, 1, 2, 0]
    assert train.sizes.tolist() == [1, 2, 0, 1]
    assert train.mtimes_ns[0] == (tmp_path / "pets" / first).stat().st_mtime_ns
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert split(sources, "val").labels.tolist() == [1]
    assert heard == [3, 4, 5]
    assert sources.passed_over.counts() == {".md": 1}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("0000.parquet", "train"),
        ("test.parquet", "test"),
        ("default/validation/0000.parquet", "val"),
        ("pets/partial-train/0000.parquet", "train"),
        ("test/train-00000.parquet", "train"),
        ("my_val_images.parquet", "val"),
        ("latest/contest.parquet", "train"),
    ],
)
def test_the_split_is_in_the_name(tmp_path, file, expected):
    write(tmp_path / file, {"image": [b"a"]})
    (only,) = list_parquet(tmp_path).splits
    assert only.name == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"split": ["train", "Validation", "TEST"]}, ["train", "val", "test"]),
        ({"Partition": ["train", "dev", "testing"]}, ["train", "val", "test"]),
        ({"subset": pa.array(["train", "val", "test"]).dictionary_encode()}, ["train", "val", "test"]),
        ({"kind": [0, 1, 2]}, ["train", "train", "train"]),
        ({"is_train": [True, True, False]}, ["train", "train", "test"]),
        ({"is_test": [0, 1, 0]}, ["train", "test", "train"]),
        ({"isValid": [0.0, 0.0, 1.0]}, ["train", "train", "val"]),
        ({"is_test": [False, False, True], "is_val": ["false", "True", "false"]}, ["train", "val", "test"]),
        ({"json": [{"split": "train"}, {"split": "val"}, {"split": "test"}]}, ["train", "val", "test"]),
        ({"fold": [0, 1, 2]}, ["train", "train", "train"]),
        ({"dataset": ["coco", "flickr", "coco"], "split": ["test"] * 3}, ["test", "test", "test"]),
    ],
)
def test_the_split_is_in_a_column(tmp_path, caplog, columns, expected):
    caplog.set_level(logging.INFO, "coma")
    sources = list_parquet(write(tmp_path / "x.parquet", {"image": [b"a", b"b", b"c"], **columns}))
    told = {path: one.name for one in sources.splits for path in one.paths}
    assert [told[path] for path in sorted(told)] == expected
    if expected != ["train"] * 3:
        assert "splits are those of " in caplog.text
    if "fold" in columns:
        assert "column fold is not used for splits: it holds '0', '1', '2'" in caplog.text


def test_class_labels_that_are_splits(tmp_path):
    features = {"image": CATS["image"], "split": {"_type": "ClassLabel", "names": ["train", "test"]}}
    rows = {"image": images(b"a", b"b"), "split": [1, 0], "label": [3, 4]}
    sources = list_parquet(write(tmp_path / "x.parquet", rows, features))
    assert {one.name: one.labels.tolist() for one in sources.splits} == {"train": [4], "test": [3]}
    assert sources.class_names is None


@pytest.mark.parametrize(
    "column",
    [
        {"split": ["train", "extra"]},
        {"split": [0, 1]},
        {"split": ["train", None]},
        {"subset": ["train", "extra"]},
        {"is_test": [True, None]},
        {"partition": ["0", "1"]},
    ],
)
def test_columns_that_look_like_splits_and_cannot_be_told(tmp_path, column):
    file = write(tmp_path / "x.parquet", {"image": [b"a", b"b"], **column})
    with pytest.raises(DataError, match=r"unknown splits in column \w+ \('.*'\); write train, val or test in each row"):
        list_parquet(file)


def test_a_column_that_contradicts_the_names_of_files_is_said(tmp_path, caplog):
    write(tmp_path / "val.parquet", {"image": [b"a", b"b"], "split": ["train", "val"]})
    write(tmp_path / "train.parquet", {"image": [b"a"], "split": ["train"]})
    assert len(split(list_parquet(tmp_path))) == 2
    assert "val.parquet has 1 rows in split train by its column, though its name says val" in caplog.text


def test_a_single_file_of_plain_bytes_and_words_for_labels(tmp_path):
    labels = pa.array(["emu", "cat", "emu"]).dictionary_encode()
    file = write(
        tmp_path / "x.parquet",
        {"id": [b"1", b"2", b"3"], "jpg": pa.array([b"a", b"bb", b"c"], pa.large_binary()), "class": labels},
    )
    sources = list_parquet(file)
    assert sources.class_names == ("cat", "emu")
    assert sources.image_column == "jpg"
    assert split(sources).labels.tolist() == [1, 0, 1]
    assert split(sources).sizes.tolist() == [1, 2, 1]
    assert sources.root == tmp_path


def test_integers_without_names_stay_what_they_are(tmp_path):
    file = write(tmp_path / "x.parquet", {"img": [b"a", b"b"], "label": pa.array([7, 3], pa.uint8())})
    sources = list_parquet(file)
    assert sources.class_names is None
    assert split(sources).labels.tolist() == [7, 3]


def test_of_several_class_labels_the_fine_ones_are_taken(tmp_path):
    named = {"_type": "ClassLabel", "names": ["a", "b", "c"]}
    rows = {"img": [b"x"], "coarse_label": [0], "fine_label": [2]}
    features = {"img": {"_type": "Image"}, "coarse_label": named, "fine_label": named}
    file = write(tmp_path / "x.parquet", rows, features)
    assert split(list_parquet(file)).labels.tolist() == [2]
    assert split(list_parquet(file, None, "coarse_label")).labels.tolist() == [0]
    rows = {"img": [b"x"], "super": [0], "sub": [2]}
    file = write(tmp_path / "y.parquet", rows, {"super": named, "sub": named})
    with pytest.raises(UsageError, match=r"several columns hold labels \(super, sub\); .* --label-column"):
        list_parquet(file)


LABELS_OF_ANY_TYPE = {
    "double": pa.array([1.0, 0.0, 1.0]),
    "float": pa.array([1.0, 0.0, 1.0], pa.float32()),
    "half": pa.array([1.0, 0.0, 1.0], pa.float32()).cast(pa.float16()),
    "decimal": pa.array([1, 0, 1], pa.decimal128(5, 2)),
    "bool": pa.array([True, False, True]),
    "unsigned": pa.array([1, 0, 1], pa.uint64()),
    "tiny": pa.array([1, 0, 1], pa.int8()),
    "dictionary of integers": pa.array([1, 0, 1]).dictionary_encode(),
    "dictionary of text": pa.array(["dog", "cat", "dog"]).dictionary_encode(),
    "text": pa.array([" dog", "cat", "dog "]),
    "large text": pa.array(["dog", "cat", "dog"], pa.large_string()),
    "view of text": pa.array(["dog", "cat", "dog"], pa.string_view()),
    "text as bytes": pa.array([b"dog", b"cat", b"dog"]),
    "list": pa.array([[1], [0], [1]]),
    "large list": pa.array([[1], [0], [1]], pa.large_list(pa.int32())),
    "list of fixed size": pa.array([[1], [0], [1]], pa.list_(pa.float64(), 1)),
    "list of text": pa.array([["dog"], ["cat"], ["dog"]]),
    "struct": pa.array([{"label": i, "name": n} for i, n in ((1, "dog"), (0, "cat"), (1, "dog"))]),
    "struct of an id": pa.array([{"id": i, "score": 0.5} for i in (1, 0, 1)]),
}


@pytest.mark.parametrize("kind", LABELS_OF_ANY_TYPE)
def test_a_label_is_a_label_whatever_its_type(tmp_path, caplog, kind):
    column = LABELS_OF_ANY_TYPE[kind]
    sources = list_parquet(write(tmp_path / "x.parquet", {"image": [b"a", b"b", b"c"], "label": column}))
    assert split(sources).labels.tolist() == [1, 0, 1]
    words = any(word in str(column.type) for word in ("string", "binary"))
    assert sources.class_names == (("cat", "dog") if words else None)
    assert not caplog.text
    asked = list_parquet(tmp_path / "x.parquet", label_column="label")
    assert split(asked).labels.tolist() == [1, 0, 1]
    (tmp_path / "x.parquet").unlink()
    table = {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": column}
    for name in table["path"]:
        (tmp_path / name).touch()
    listed = list_paths(write(tmp_path / "x.parquet", table))
    assert (split(listed).labels.tolist(), listed.class_names) == ([1, 0, 1], sources.class_names)


@pytest.mark.parametrize(
    "column",
    [pa.array([1.0, float("nan"), 0.0]), pa.array([1, None, 0]), pa.array([[1], [], [0]]), pa.array(["x", " ", "y"])],
)
def test_labels_that_are_missing_in_any_type(tmp_path, caplog, column):
    sources = list_parquet(write(tmp_path / "x.parquet", {"image": [b"a", b"b", b"c"], "label": column}))
    assert split(sources).labels is None
    assert "1 of its 3 images have none; to keep the labels of the others, fill them in or take" in caplog.text


def test_labels_of_objects_in_images_are_said(tmp_path, caplog):
    boxes = [[{"bbox": [1, 2], "category": 0}, {"bbox": [3, 4], "category": 1}]]
    assert split(list_parquet(write(tmp_path / "x.parquet", {"image": [b"a"], "objects": boxes}))).labels is None
    said = "column objects.category of x.parquet is not used for labels: it holds several values for an image"
    assert said in caplog.text
    columns = {"image": [b"a"], "objects": [{"bbox": [[1, 2], [3, 4]], "category": [0, 1]}]}
    assert split(list_parquet(write(tmp_path / "y.parquet", columns))).labels is None
    assert "column objects.category of" in caplog.text.splitlines()[-1]
    assert "it holds several labels for an image" in caplog.text


def test_masks_beside_images_are_no_labels(tmp_path, caplog):
    features = {"image": CATS["image"], "label": CATS["image"]}
    file = write(tmp_path / "x.parquet", {"image": images(b"a"), "label": images(b"bb")}, features)
    sources = list_parquet(file)
    assert (sources.image_column, split(sources).labels) == ("image.bytes", None)
    assert "column label of x.parquet is not used for labels: it holds struct" in caplog.text
    assert list_parquet(file, "label").image_column == "label.bytes"


def test_every_row_is_in_one_place(tmp_path):
    column = pa.array([{"bytes": b, "path": p} for b in (b"a", b"", None) for p in ("x.jpg", None)] + [None], IMAGE)
    splits = ["train", "val", "test", "train", "val", "test", "train"]
    for name, rows in (("train", slice(0, 7)), ("test", slice(0, 0)), ("val", slice(2, 5))):
        part = column[rows]
        write(tmp_path / f"{name}.parquet", {"image": part, "split": pa.array(splits[rows], pa.string())})
    sources = list_parquet(tmp_path)
    places = sorted((file, row) for one in sources.splits for file, row in zip(one.files, one.offsets, strict=True))
    assert places == [("train.parquet", row) for row in range(7)] + [("val.parquet", row) for row in range(3)]
    without_bytes = {i: one.sizes[i] for one in sources.splits for i in one.refused}
    assert set(without_bytes.values()) == {-1}
    assert sum(len(one.refused) for one in sources.splits) == 3 + 1


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([0.5, 1.0]), "it holds 0.5, which is not a whole number"),
        (pa.array([float("inf"), 1.0]), "it holds inf, which is not a whole number"),
        (pa.array([[1, 2], [1]]), "it holds several labels for an image"),
        (pa.array([b"\xff\xd8\xff" * 99999, b"\xff"]), "it holds bytes that are not text"),
        (pa.array([0, 1], pa.timestamp("ms")), r"it holds timestamp\[ms\]"),
        (pa.array([0, 1], pa.date32()), "it holds date32"),
        (pa.array([{"bytes": b"a", "size": 5.0}] * 2), "it holds struct"),
        (pa.array([[{"a": 1}]] * 2), "it holds list of struct"),
    ],
)
def test_labels_that_are_not_used_are_said(tmp_path, caplog, column, reason):
    file = write(tmp_path / "x.parquet", {"image": [b"a", b"b"], "label": column, "other": [[1], [0]]})
    sources = list_parquet(file, "image")
    assert split(sources).labels is None
    assert re.search(
        f"column label of .* is not used for labels: {reason}.*; --label-column names another", caplog.text
    )
    with pytest.raises((DataError, UsageError), match="--label-column label: "):
        list_parquet(file, "image", "label")
    assert split(list_parquet(file, "image", "other")).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "names",
    [
        {"label": [1, 0], "label_name": ["dog", "cat"]},
        {"Class ID": [1.0, 0.0], "class-name": ["dog", "cat"]},
        {"category_id": [1, 0], "category": ["dog", "cat"]},
        {"label": [1, 0], "species": ["dog", "cat"]},
        {"json": [{"label": 1, "class_name": "dog"}, {"label": 0, "class_name": "cat"}]},
    ],
)
def test_names_beside_the_labels_are_kept(tmp_path, names):
    sources = list_parquet(write(tmp_path / "x.parquet", {"image": [b"a", b"b"], **names}))
    assert (split(sources).labels.tolist(), sources.class_names) == ([1, 0], ("cat", "dog"))


def test_names_that_do_not_fit_the_labels(tmp_path, caplog):
    rows = {"image": [b"a", b"b"], "label": [1, 1], "label_name": ["dog", "cat"]}
    sources = list_parquet(write(tmp_path / "x.parquet", rows))
    assert (split(sources).labels.tolist(), sources.class_names) == ([1, 1], None)
    assert "label 1 is called 'dog' and 'cat'" in caplog.text


@pytest.mark.parametrize("wrap", [{"_type": "Sequence", "length": 1}, {"_type": "List"}, None])
def test_class_labels_in_sequences_and_structs(tmp_path, wrap):
    feature = {**wrap, "feature": CATS["label"]} if wrap else [CATS["label"]]
    rows = {"image": images(b"a", b"b"), "kind": pa.array([[1], [0]])}
    sources = list_parquet(write(tmp_path / "x.parquet", rows, {"image": CATS["image"], "kind": feature}))
    assert (split(sources).labels.tolist(), sources.class_names) == ([1, 0], ("cat", "dog"))
    rows = {"image": images(b"a", b"b"), "about": pa.array([{"kind": 1}, {"kind": 0}])}
    features = {"image": CATS["image"], "about": {"kind": CATS["label"]}}
    sources = list_parquet(write(tmp_path / "x.parquet", rows, features))
    assert (split(sources).labels.tolist(), sources.class_names) == ([1, 0], ("cat", "dog"))


def test_of_several_usual_names_the_line_says_which_is_taken(tmp_path, caplog):
    caplog.set_level(logging.INFO, "coma")
    rows = {"image": [b"a"], "coarse_label": [0], "fine_label": [2], "labels": [[1, 2]], "x": [1.0], "y": [2.0]}
    sources = list_parquet(write(tmp_path / "x.parquet", rows))
    assert split(sources).labels.tolist() == [2]
    said = "labels are taken from column fine_label; --label-column takes them from another (labels, coarse_label)"
    assert said in caplog.text


def test_rows_that_are_set_aside_need_no_label(tmp_path, caplog):
    rows = {"image": pa.array([b"a", None, b"b"]), "label": [7, None, 3]}
    sources = list_parquet(write(tmp_path / "x.parquet", rows))
    assert split(sources).labels.tolist()[::2] == [7, 3]
    assert split(sources).refused == {1: "empty: the row has no bytes"}
    assert not caplog.text


def test_which_column_holds_the_images_may_have_to_be_said(tmp_path):
    file = write(tmp_path / "x.parquet", {"image": images(b"a"), "png": [b"bb"], "label": [0]})
    with pytest.raises(UsageError, match=r"several columns may hold the images \(image, png\); .* --image-column"):
        list_parquet(file)
    assert list_parquet(file, "image").image_column == "image.bytes"
    assert list_parquet(file, "png").image_column == "png"
    assert split(list_parquet(file, "png")).sizes.tolist() == [2]
    with pytest.raises(UsageError, match=r"--image-column label: no such column of bytes \(there are image, "):
        list_parquet(file, "label")
    with pytest.raises(UsageError, match=r"--label-column what: .* has no such column \(there are image, "):
        list_parquet(file, "png", "what")


def test_one_column_of_bytes_needs_no_usual_name(tmp_path):
    assert list_parquet(write(tmp_path / "x.parquet", {"scan": [b"a"]})).image_column == "scan"
    with pytest.raises(DataError, match=r"no column of images .* \(there are a\)"):
        list_parquet(write(tmp_path / "y.parquet", {"a": [1]}))


def test_missing_labels_make_a_split_unlabelled(tmp_path, caplog):
    write(tmp_path / "train.parquet", {"image": [b"a", b"b"], "label": [0, 1]}, CATS)
    write(tmp_path / "test.parquet", {"image": [b"a", b"b"], "label": [-1, -1]}, CATS)
    sources = list_parquet(tmp_path)
    assert split(sources).labels.tolist() == [0, 1]
    assert split(sources, "test").labels is None
    assert not caplog.text
    write(tmp_path / "val.parquet", {"image": [b"a", b"b", b"c"], "label": pa.array([None, 1, 1])}, CATS)
    assert split(list_parquet(tmp_path), "val").labels is None
    assert "split val is taken without labels: 1 of its 3 images have none" in caplog.text


def test_labels_that_cannot_be(tmp_path):
    with pytest.raises(DataError, match=r"the label 2; labels go from 0 to 1, the last that has a name"):
        list_parquet(write(tmp_path / "x.parquet", {"image": [b"a"], "label": [2]}, CATS))
    with pytest.raises(DataError, match="the label -7; labels go from 0 to 2147483647"):
        list_parquet(write(tmp_path / "x.parquet", {"image": [b"a"], "label": [-7]}))
    with pytest.raises(DataError, match="the label 2147483648"):
        list_parquet(write(tmp_path / "x.parquet", {"image": [b"a"], "label": [2**31]}))
    other = {**CATS, "label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    write(tmp_path / "x.parquet", {"image": [b"a"], "label": [1]}, CATS)
    write(tmp_path / "y.parquet", {"image": [b"a"], "label": [1]}, other)
    with pytest.raises(DataError, match="do not agree on the class names of column label"):
        list_parquet(tmp_path)


def test_rows_without_bytes_are_refused(tmp_path):
    column = pa.array([{"bytes": None, "path": "a.jpg"}, None, {"bytes": b"x", "path": None}], IMAGE)
    train = split(list_parquet(write(tmp_path / "x.parquet", {"image": column})))
    assert train.refused == {
        0: "empty: the row has no bytes; it names a file, which is not followed",
        1: "empty: the row has no bytes",
    }
    assert train.sizes.tolist() == [-1, -1, 1]


def test_files_without_images_are_left_out_aloud(tmp_path, caplog):
    write(tmp_path / "x.parquet", {"image": [b"a"]})
    write(tmp_path / "facts.parquet", {"rows": [1]})
    write(tmp_path / ".hidden" / "y.parquet", {"image": [b"a"]})
    write(tmp_path / "out" / "manifest.parquet", {"image": [b"a"]})
    sources = list_parquet(tmp_path, exclude=tmp_path / "out")
    assert len(sources) == 1
    assert sources.passed_over.counts() == {".parquet without images": 1, "hidden": 1}
    assert "left out facts.parquet" in caplog.text


def test_a_split_without_rows_is_left_out_aloud(tmp_path, caplog):
    write(tmp_path / "train.parquet", {"image": [b"a", b"b"], "label": [0, 1]})
    write(tmp_path / "validation.parquet", {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    with pq.ParquetWriter(tmp_path / "test.parquet", pa.schema([("image", pa.binary())])):
        pass  # no row group either
    sources = list_parquet(tmp_path)
    assert [(split.name, len(split)) for split in sources.splits] == [("train", 2)]
    assert "validation.parquet has no rows" in caplog.text
    assert "test.parquet has no rows" in caplog.text
    (tmp_path / "train.parquet").unlink()
    assert len(list_parquet(tmp_path)) == 0


# ImageNet-1k as Hugging Face has it: the paths end in the class, the test labels are -1
WNIDS = ("n01440764", "n01751748", "n02119789")
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["tench, Tinca tinca", "sea snake", "kit fox"]},
}


def write_imagenet(root, labels=lambda k: k):
    train = [(f"{wnid}_{n}_{wnid}.JPEG", labels(k)) for n in (10026, 9) for k, wnid in enumerate(WNIDS)]
    val = [(f"ILSVRC2012_val_0000000{n}_{WNIDS[n % 3]}.JPEG", labels(n % 3)) for n in (2, 1, 3)]
    test = [(f"ILSVRC2012_test_0000000{n}.JPEG", -1) for n in (1, 2)]
    parts = {"train-00000-of-00002": train[:4], "train-00001-of-00002": train[4:]}
    parts |= {"validation-00000-of-00001": val, "test-00000-of-00001": test}
    sizes = iter(range(1, 100))
    for name, rows in parts.items():
        data = images(*(bytes(next(sizes)) for _ in rows), paths=[path for path, _ in rows])
        columns = {"image": data, "label": [label for _, label in rows]}
        write(root / "data" / f"{name}.parquet", columns, FEATURES)
    return root


def test_imagenet_is_called_as_in_every_other_layout(tmp_path, caplog):
    caplog.set_level(logging.INFO, "coma")
    sources = list_parquet(write_imagenet(tmp_path))
    assert sources.class_names == WNIDS
    assert sources.class_words == ("tench, Tinca tinca", "sea snake", "kit fox")
    assert [split.name for split in sources.splits] == ["train", "test", "val"]
    assert split(sources).paths == [f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS for n in (10026, 9)]
    assert split(sources).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert split(sources).sizes.tolist() == [1, 4, 2, 5, 3, 6]
    assert split(sources).offsets.tolist() == [0, 3, 1, 0, 2, 1]
    assert split(sources, "val").paths == [
        "val/n01440764/ILSVRC2012_val_00000003.JPEG",
        "val/n01751748/ILSVRC2012_val_00000001.JPEG",
        "val/n02119789/ILSVRC2012_val_00000002.JPEG",
    ]
    assert split(sources, "val").labels.tolist() == [0, 1, 2]
    assert split(sources, "test").paths == [f"test/ILSVRC2012_test_0000000{n}.JPEG" for n in (1, 2)]
    assert split(sources, "test").labels is None
    assert "the images have the paths of ImageNet" in caplog.text


def test_imagenet_is_the_same_as_its_tree(tmp_path):
    from coma.shards.sources.detect import list_source

    sources = list_parquet(write_imagenet(tmp_path / "hf"))
    for one in sources.splits:
        for path, size in zip(one.paths, one.sizes, strict=True):
            (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / path).write_bytes(bytes(size))
    tree = list_source(tmp_path / "tree")
    assert sources.class_names == tree.class_names
    for one, other in zip(sources.splits, tree.splits, strict=True):
        assert (one.name, one.paths, one.sizes.tolist()) == (other.name, other.paths, other.sizes.tolist())
        assert (one.labels is None) == (other.labels is None)
        assert one.labels is None or one.labels.tolist() == other.labels.tolist()


def test_imagenet_whose_labels_contradict_its_paths(tmp_path):
    with pytest.raises(DataError, match=r"images of n\d+ and of n\d+ have one label, 0"):
        list_parquet(write_imagenet(tmp_path / "a", labels=lambda k: 0))
    mixed = iter([0, 1, 2, 1, 0, 2, 0, 0, 0])
    with pytest.raises(DataError, match=r"n01440764_9.JPEG has the label 1, others of n01440764 have 0"):
        list_parquet(write_imagenet(tmp_path / "b", labels=lambda k: next(mixed)))


def test_one_foreign_path_and_nothing_is_imagenet(tmp_path):
    write_imagenet(tmp_path)
    write(tmp_path / "data" / "train-x.parquet", {"image": images(b"a", paths=["cat.jpg"]), "label": [0]})
    sources = list_parquet(tmp_path)
    assert sources.class_names == ("tench, Tinca tinca", "sea snake", "kit fox")
    assert sources.class_words is None
    assert all(".parquet/" in path for path in split(sources).paths)


def test_images_of_imagenet_that_are_there_twice_are_refused_once(tmp_path):
    write_imagenet(tmp_path)
    write_imagenet(tmp_path / "again")
    sources = list_parquet(tmp_path)
    assert split(sources, "test").refused == {1: "duplicate: listed twice", 3: "duplicate: listed twice"}
    assert len(split(sources).refused) == 6


# What lies


class Thrift:
    """Just enough of Thrift's compact protocol to write a parquet file that lies."""

    def __init__(self):
        self.data = b""
        self.last = 0

    @staticmethod
    def varint(n):
        out = b""
        while n > 127:
            out += bytes([n & 127 | 128])
            n >>= 7
        return out + bytes([n])

    def field(self, number, kind, body):
        self.data += bytes([(number - self.last) << 4 | kind]) + body
        self.last = number
        return self

    def i32(self, number, value, kind=5):
        return self.field(number, kind, self.varint(value * 2 if value >= 0 else -value * 2 - 1))

    def i64(self, number, value):
        return self.i32(number, value, kind=6)

    def text(self, number, value):
        return self.field(number, 8, self.varint(len(value)) + value)

    def struct(self, number, inner):
        return self.field(number, 12, bytes(inner))

    def structs(self, number, inner):
        return self.field(number, 9, self.head(len(inner), 12) + b"".join(map(bytes, inner)))

    def i32s(self, number, values):
        return self.field(number, 9, self.head(len(values), 5) + b"".join(self.varint(v * 2) for v in values))

    def texts(self, number, values):
        body = b"".join(self.varint(len(value)) + value for value in values)
        return self.field(number, 9, self.head(len(values), 8) + body)

    @classmethod
    def head(cls, count, kind):
        return bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + cls.varint(count)

    def __bytes__(self):
        return self.data + b"\0"


PLAIN, RLE, ZSTD = 0, 3, 6


def liar(file, rows=1, page=b"\1\0\0\0a", zeros=0, unpacked=None, values=None, groups=1, footer=None):
    """Write a file of `groups` row groups which all have their one page of required binary `image` in one place.

    The page is `page` and then `zeros` MiB of zeros.
    """
    packed = pa.compress(page, "zstd", asbytes=True) + pa.compress(bytes(1 << 20), "zstd", asbytes=True) * zeros
    unpacked = len(page) + (zeros << 20) if unpacked is None else unpacked
    values = rows // groups if values is None else values
    data_header = Thrift().i32(1, values).i32(2, PLAIN).i32(3, RLE).i32(4, RLE)
    header = bytes(Thrift().i32(1, 0).i32(2, unpacked).i32(3, len(packed)).struct(5, data_header))
    chunk_bytes = len(header) + len(packed)
    about = Thrift().i32(1, 6).i32s(2, [PLAIN]).texts(3, [b"image"]).i32(4, ZSTD).i64(5, values)
    about.i64(6, chunk_bytes).i64(7, chunk_bytes).i64(9, 4)
    group = Thrift().structs(1, [Thrift().i64(2, 4).struct(3, about)]).i64(2, chunk_bytes).i64(3, values)
    root = Thrift().text(4, b"schema").i32(5, 1)
    leaf = Thrift().i32(1, 6).i32(3, 0).text(4, b"image")
    meta = bytes(Thrift().i32(1, 1).structs(2, [root, leaf]).i64(3, rows).structs(4, [group] * groups))
    length = len(meta) if footer is None else footer
    file.write_bytes(b"PAR1" + header + packed + meta + length.to_bytes(4, "little") + b"PAR1")
    return file


def test_a_file_written_by_hand_is_read(tmp_path):
    file = liar(tmp_path / "x.parquet", rows=4, page=b"\1\0\0\0a\2\0\0\0bb", groups=2)
    assert pq.read_table(file)["image"].to_pylist() == [b"a", b"bb"] * 2
    assert split(list_parquet(file)).sizes.tolist() == [1, 2, 1, 2]


def value_of(mib):
    return {"page": (mib << 20).to_bytes(4, "little"), "zeros": mib}


LIES = {
    "a million million rows": (lambda f: liar(f, rows=10**12, values=1), "claims 1,000,000,000,000 rows in"),
    "a few rows more than it has": (lambda f: liar(f, rows=7, values=1), r"claims 7 rows, and has 1$"),
    "fewer rows than it has": (lambda f: liar(f, rows=1, groups=3, values=1), "claims 1 rows, and has"),
    "negative rows": (lambda f: liar(f, rows=-1, values=1), "is impossible"),
    "a page of 2 GB": (lambda f: liar(f, unpacked=2**31 - 1), "more than the limit of 880 MiB of memory"),
    "a page of -1 bytes": (lambda f: liar(f, unpacked=-1), "cannot be read as parquet"),
    "a page of a million million values": (lambda f: liar(f, values=2**31 - 1), "x.parquet"),
    "a value of 4 GB": (lambda f: liar(f, page=b"\xff\xff\xff\xff" + bytes(99)), "cannot be read as parquet"),
    "a value of 1 GB, packed well": (lambda f: liar(f, **value_of(1000)), "880 MiB of memory"),
    "10 GB of images in a few kB": (
        lambda f: liar(f, rows=400, groups=400, **value_of(25)),
        "unpacks to more than",
    ),
    "metadata of 2 GB": (lambda f: liar(f, footer=2**31 - 1), "claims 2,147,483,647 bytes of metadata"),
    "not parquet": (lambda f: f.write_bytes(b"hello" * 100), "is not a parquet file"),
    "nothing": (lambda f: f.write_bytes(b""), r"is empty: it has no bytes \(.* fetch it again"),
    "cut short": (lambda f: f.write_bytes(b"PAR1" + b"x" * 100), "is cut short: it begins as a parquet file"),
    "encrypted": (lambda f: f.write_bytes(b"PARE" + b"x" * 100 + b"PARE"), "is encrypted; write it anew"),
    "a pointer": (
        lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "is a Git LFS pointer .`git lfs pull` fetches",
    ),
    "a web page": (lambda f: f.write_bytes(b"<!doctype html><html></html>"), "is an HTML page; .* fetch it again"),
    "packed": (lambda f: f.write_bytes(b"\x1f\x8b" + bytes(20)), "is a gzip archive; unpack it first"),
    "random metadata": (
        lambda f: f.write_bytes(b"PAR1" + os.urandom(200) + (200).to_bytes(4, "little") + b"PAR1"),
        "cannot be read as parquet",
    ),
}

LIST = """
import resource, sys
from pathlib import Path
from coma.errors import DataError
from coma.shards.sources.parquet.sandbox import SandboxedReader
with SandboxedReader() as reader:
    for file in map(Path, sys.argv[1:]):
        try:
            reader.contents(file)
            print("nothing is wrong:", sum(len(rows.lengths) for rows in reader.rows(file, "image")))
        except DataError as error:
            print(error)
status = Path("/proc/self/status").read_text()  # what getrusage says of this process it has from its parent
print(status.split("VmHWM:")[1].split()[0], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_parquet_that_lies_is_refused_in_one_line_with_bounded_memory(tmp_path):
    files = []
    for i, (make, _) in enumerate(LIES.values()):
        (tmp_path / str(i)).mkdir()
        files.append(tmp_path / str(i) / "x.parquet")
        make(files[-1])
    done = subprocess.run([sys.executable, "-c", LIST, *map(str, files)], capture_output=True, text=True, check=True)
    *said, peaks = done.stdout.splitlines()
    assert not done.stderr
    for (what, (_, expected)), file, line in zip(LIES.items(), files, said, strict=True):
        assert str(file) in line, what
        assert re.search(expected, line), f"{what}: {line}"
    assert max(map(int, peaks.split())) < 1 << 20, "KiB"
