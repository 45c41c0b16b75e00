import csv
import io
import os
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from coma.errors import DataError, UsageError
from coma.shards.sources.labels import NotLabelsError, number_labels, split_from_name
from coma.shards.sources.path_list import holds_images, list_paths
from coma.shards.sources.path_list_formats import parse_labels


@pytest.fixture
def folder(tmp_path):
    """A root with a few files, named by their own paths, so that sizes tell them apart."""
    for name in ("a.jpg", "b.jpg", "c.png", "deep/er/d.jpg", "my cat.jpg", "scan", "cat,dog.jpg"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(name)
    return tmp_path / "root"


def listed(folder, text, name="list.csv", **how):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_paths(file, **how)


def train(sources):
    return next(split for split in sources.splits if split.name == "train")


def test_columns_by_their_usual_names(folder):
    sources = listed(folder, "id,File_Name,label\n1,b.jpg,7\n2,./deep//er/d.jpg,3\n\n3,a.jpg,7\n")
    split = train(sources)
    assert (sources.root, sources.layout, sources.class_names) == (folder, "list", None)
    assert split.paths == split.files == ["a.jpg", "b.jpg", "deep/er/d.jpg"]
    assert split.sizes.tolist() == [5, 5, 13]
    assert split.offsets.tolist() == [-1] * 3
    assert split.mtimes_ns[0] == (folder / "a.jpg").stat().st_mtime_ns
    assert split.labels.tolist() == [7, 7, 3]
    assert not split.refused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "path,label\na.jpg,emu\nb.jpg,cat\n"),
        ("x.csv", "\ufeffpath;label\r\na.jpg;emu\r\nb.jpg;cat\r\n"),
        ("x.csv", 'path\tlabel\n"a.jpg"\temu\nb.jpg\tcat'),
        ("x.tsv", "path\tlabel\na.jpg\temu\nb.jpg\t cat \n"),
        ("x.csv", "a.jpg,emu\nb.jpg,cat\n"),
        ("x.csv", "b.jpg;cat;train\na.jpg;emu;training\n"),
        ("x.txt", "a.jpg emu\n\nb.jpg cat\n"),
        ("X.TXT", "\ufeffa.jpg\temu\r\nb.jpg\tcat"),
    ],
)
def test_ways_to_write_the_same(folder, name, text):
    sources = listed(folder, text, name)
    assert sources.class_names == ("cat", "emu")
    assert train(sources).paths == ["a.jpg", "b.jpg"]
    assert train(sources).labels.tolist() == [1, 0]


def test_parquet_is_a_list_too(folder):
    table = pa.table({"image": ["a.jpg", "b.jpg", None], "label": pa.array([1, 0, 1], pa.uint8())})
    pq.write_table(table, folder / "x.parquet")
    sources = list_paths(folder / "x.parquet")
    assert train(sources).labels.tolist() == [1, 1, 0]
    assert train(sources).refused == {0: "missing: the list has no path there"}
    assert not holds_images(folder / "x.parquet")
    pq.write_table(pa.table({"image": [b"a"], "path": ["a.jpg"]}), folder / "x.parquet")
    assert holds_images(folder / "x.parquet")
    pq.write_table(table, folder / "x.parquet")
    with pytest.raises(UsageError, match=r"no text in the column label; name a column of paths with --image-column"):
        list_paths(folder / "x.parquet", "label")


def test_lines_of_text(folder):
    split = train(listed(folder, "my cat.jpg\nscan\na.jpg\n", "x.txt"))
    assert split.paths == ["a.jpg", "my cat.jpg", "scan"]
    assert split.labels is None
    split = train(listed(folder, "my cat.jpg 0\nscan 2\na.jpg 1\n", "x.txt"))
    assert split.paths == ["a.jpg", "my cat.jpg", "scan"]
    assert split.labels.tolist() == [1, 0, 2]
    with pytest.raises(UsageError, match=r"--label-column x: .* is lines of text"):
        listed(folder, "a.jpg 1", "x.txt", label_column="x")


def test_columns_that_are_asked_for(folder):
    text = "path,label,copy,rank\na.jpg,x,b.jpg,5\n"
    split = train(listed(folder, text, path_column="copy", label_column="rank"))
    assert (split.paths, split.labels.tolist()) == (["b.jpg"], [5])
    with pytest.raises(UsageError, match=r"--label-column what: .* \(there are label, copy, rank\)"):
        listed(folder, text, label_column="what")
    with pytest.raises(UsageError, match=r"no column of paths \(a, b\); name a column of paths with --image-column"):
        listed(folder, "a,b\n1,2\n")


def test_splits(folder):
    text = "path,label,split\na.jpg,0,train\nb.jpg,1,Validation\nc.png,1,test\nscan,0,val\n"
    sources = listed(folder, text)
    assert {s.name: s.paths for s in sources.splits} == {
        "train": ["a.jpg"],
        "test": ["c.png"],
        "val": ["b.jpg", "scan"],
    }
    assert sources.splits[0].name == "train"
    assert len(listed(folder, text + "my cat.jpg,1,dev\n").splits[2]) == 3
    with pytest.raises(DataError, match=r"unknown splits in column split \('', 'extra'\); write train, val or test"):
        listed(folder, text + "my cat.jpg,1,extra\ndeep/er/d.jpg,1,\n")
    assert [s.name for s in listed(folder, "a.jpg 1", "val.txt").splits] == ["val"]


def test_splits_as_truth_values(folder, caplog):
    sources = listed(folder, "fname,labels,is_valid\na.jpg,0,False\nb.jpg,1,True\n", "test.csv")
    assert {s.name: s.paths for s in sources.splits} == {"train": ["a.jpg"], "val": ["b.jpg"]}
    assert "test.csv has 1 rows in split train by its column, though its name says test" in caplog.text


def test_missing_labels_make_a_split_unlabelled(folder, caplog):
    text = "path,label,split\na.jpg,emu,train\nb.jpg,,val\nc.png,dog,val\nscan,,test\n"
    sources = listed(folder, text)
    assert {s.name: None if s.labels is None else s.labels.tolist() for s in sources.splits} == {
        "train": [0],
        "val": None,
        "test": None,
    }
    assert sources.class_names == ("emu",)
    assert "split val is taken without labels: 1 of its 2 images have none" in caplog.text
    assert "split test" not in caplog.text


def test_names_beside_the_labels(folder, caplog):
    text = "path,label,class_name\na.jpg,1,emu\nb.jpg,2,cat\nc.png,1,emu\n"
    sources = listed(folder, text)
    assert sources.class_names == ("0", "emu", "cat")
    assert train(sources).labels.tolist() == [1, 2, 1]
    assert not caplog.text
    assert listed(folder, text.replace("c.png,1,emu", "c.png,1,dog")).class_names is None
    assert "label 1 is called 'emu' and 'dog'" in caplog.text
    assert listed(folder, text.replace("c.png,1,emu", "c.png,3,emu")).class_names is None
    assert listed(folder, text.replace("b.jpg,2,cat", "b.jpg,200,cat")).class_names is None


def test_lists_of_several_labels_are_said(folder, caplog):
    text = "path,labels\na.jpg,\"['cat', 'dog']\"\nb.jpg,['cat']\n"
    assert train(listed(folder, text)).labels is None
    assert "column labels of" in caplog.text
    assert "is not used for labels: it holds several labels for an image" in caplog.text
    with pytest.raises(DataError, match=r"--label-column labels: .* has no labels there: it holds several"):
        listed(folder, text, label_column="labels")


@pytest.mark.parametrize(
    "header", ["category_id", "Class ID", "fine_label", "y", "species", "label,coarse_label", "category_id,category"]
)
def test_usual_names_of_columns_with_labels(folder, header):
    others = "," * header.count(",")
    split = train(listed(folder, f"image_id,{header}\na.jpg,4{others}\nb.jpg,2{others}\n"))
    assert split.labels.tolist() == [4, 2]


def test_rows_that_are_set_aside_need_no_label(folder, caplog):
    split = train(listed(folder, "path,label,class_name\na.jpg,1,emu\ngone.jpg,,\n,,\nb.jpg,0,cat\n"))
    assert len(split.refused) == 2
    assert sorted(split.labels[i] for i in range(4) if i not in split.refused) == [0, 1]
    assert not caplog.text


def test_labels_as_pandas_writes_them():
    assert parse_labels(["3.0", " 12", "", "-1"]) == [3, 12, None, -1]
    assert parse_labels(["3.5", "12"]) == ["3.5", "12"]
    assert parse_labels(["n01", "007"]) == ["n01", "007"]
    assert parse_labels(["3", "nan", "None", "<NA>"]) == [3, None, None, None]
    assert parse_labels(["cat", "none"]) == ["cat", "none"]
    assert parse_labels(["[3]", "[ 4 ]", "[]"]) == [3, 4, None]
    assert parse_labels(["['a cat']", '["dog"]', ""]) == ["a cat", "dog", None]
    assert parse_labels(["[3]", "4"]) == ["[3]", "4"]
    with pytest.raises(NotLabelsError, match="several labels for an image"):
        parse_labels(["['cat', 'dog']", "['cat']"])
    with pytest.raises(DataError, match="the label 2147483648; labels go from 0 to 2147483647"):
        number_labels("x.csv", {"train": [1, 2**31]})


def test_paths_that_lead_elsewhere_are_refused_by_name(folder, tmp_path):
    (tmp_path / "secret.jpg").write_text("secret")
    (folder / "link").symlink_to("/etc")
    outside = ["../secret.jpg", "/etc/passwd", "deep/../../secret.jpg", f"{folder}x/a.jpg", "//etc/passwd"]
    inside = ["a.jpg", f"{folder}/b.jpg", "../root/c.png", "deep/../scan", "./my cat.jpg"]
    split = train(listed(folder, "\n".join(["path", *outside, *inside])))
    assert [split.paths[i] for i in split.refused] == sorted(outside)
    assert all(reason.startswith("outside the source: ") for reason in split.refused.values())
    assert [path for i, path in enumerate(split.paths) if i not in split.refused] == [
        "a.jpg",
        "b.jpg",
        "c.png",
        "my cat.jpg",
        "scan",
    ]
    assert all(split.sizes[i] == -1 for i in split.refused)


def test_a_root_that_is_reached_by_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to("root")
    (tmp_path / "other").symlink_to("link")
    (folder / "b.jpg").unlink()
    (tmp_path / "store.jpg").write_text("elsewhere")
    (folder / "b.jpg").symlink_to(tmp_path / "store.jpg")  # links within the root are followed
    paths = [f"{folder}/a.jpg", f"{tmp_path}/link/c.png", f"{tmp_path}/other/scan", "../root/my cat.jpg", "b.jpg"]
    text = "\n".join(["path", *paths, f"{tmp_path}/store.jpg", f"{tmp_path}/root", "../link/../store.jpg"])
    (folder / "list.csv").write_text(text)
    split = train(list_paths(tmp_path / "link" / "list.csv"))
    taken = [path for i, path in enumerate(split.paths) if i not in split.refused]
    assert taken == ["a.jpg", "b.jpg", "c.png", "my cat.jpg", "scan"]
    assert sorted(reason.partition(":")[0] for reason in split.refused.values()) == [
        "not an image",
        "outside the source",
        "outside the source",
    ]


def test_a_list_that_is_a_link(folder, tmp_path):
    (folder / "list.csv").write_text(f"path\na.jpg\n{folder}/b.jpg\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "link.csv").symlink_to(folder / "list.csv")
    sources = list_paths(tmp_path / "lists" / "link.csv")
    assert (sources.root, train(sources).paths, train(sources).refused) == (folder, ["a.jpg", "b.jpg"], {})
    (tmp_path / "lists" / "a.jpg").touch()  # beside the link goes before
    assert list_paths(tmp_path / "lists" / "link.csv").root == tmp_path / "lists"
    with pytest.raises(DataError, match=r"none of the 2 files .* say with --root"):
        list_paths(tmp_path / "lists" / "link.csv", root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("file://{root}/my%20cat.jpg", "my cat.jpg"),
        ("file://localhost{root}/a.jpg", "a.jpg"),
        ("~/root/a.jpg", "a.jpg"),
        (" a.jpg  ", "a.jpg"),
        ("my%20cat.jpg", "my cat.jpg"),
        (r"deep\er\d.jpg", "deep/er/d.jpg"),
        (r".\deep\\er/d.jpg", "deep/er/d.jpg"),
        ("'a.jpg'", "a.jpg"),
        ("A.JPG", "a.jpg"),
        ("Deep/ER/d.jpg", "deep/er/d.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("nai\u0308ve/x.jpg", "na\u00efve/x.jpg"),
    ],
)
def test_paths_in_another_spelling(folder, tmp_path, monkeypatch, caplog, written, on_disk):
    monkeypatch.setenv("HOME", str(tmp_path))
    caplog.set_level("INFO", "coma")
    (folder / on_disk).parent.mkdir(exist_ok=True)
    (folder / on_disk).touch()
    (only,) = listed(folder, f'path\n"{written.format(root=folder)}"\n').splits
    assert (only.paths, only.refused) == ([on_disk], {})
    assert "files that are called otherwise in the list than on the disk: 1, such as" in caplog.text


def test_a_path_is_first_taken_as_it_is_written(folder):
    for name in ("A.jpg", "my%20cat.jpg", r"deep\er", " a.jpg"):
        (folder / name).write_text(name)
    split = train(listed(folder, 'path\nA.jpg\nmy%20cat.jpg\ndeep\\er\n" a.jpg"\na.jpg\nB.jpg\nb.JPG\n'))
    assert split.paths == [" a.jpg", "A.jpg", "a.jpg", "b.jpg", "b.jpg", r"deep\er", "my%20cat.jpg"]
    assert set(split.refused.values()) == {"duplicate: listed twice"}
    split = train(listed(folder, "path\nb.jpg\nDeep/er/D.jpg\nmY cat.jpg\na.JPG\n"))
    assert split.refused == {0: "missing: the list names it, but it is not there"}  # a.jpg or A.jpg
    assert split.paths[0] == "a.JPG"


def test_escapes_do_not_lead_out(folder, tmp_path):
    (tmp_path / "secret.jpg").write_text("secret")
    texts = ["%2e%2e/secret.jpg", r"..\secret.jpg", f"file://{tmp_path}/secret.jpg", "../SECRET.jpg", " ../secret.jpg"]
    split = train(listed(folder, "\n".join(["path", "a.jpg", *texts])))
    assert [split.paths[i] for i in range(len(split)) if i not in split.refused] == ["a.jpg"]


def test_urls_are_not_downloaded(folder):
    split = train(listed(folder, "path\na.jpg\nhttps://example.org/b.jpg\ns3://bucket/c.png\n"))
    assert set(split.refused.values()) == {"missing: it is a URL, and nothing is downloaded"}
    assert len(split.refused) == 2
    with pytest.raises(DataError, match=r"x.csv names URLs, and nothing is downloaded; download the images"):
        listed(folder, "image_url,caption\nhttps://example.org/b.jpg,b\n", "x.csv")


def test_images_that_are_listed_with_several_labels(folder, caplog):
    sources = listed(folder, "path,label\na.jpg,1\na.jpg,2\na.jpg,1\nb.jpg,2\n")
    assert sorted(train(sources).refused.values()) == [
        "duplicate: listed twice",
        "duplicate: listed twice, with different labels",
    ]
    assert "rows that name an image again with a different label: 1; the first label is kept" in caplog.text


def test_what_is_not_there_or_twice_or_no_file(folder):
    (folder / "loop").symlink_to("loop")
    text = (
        "path,split\na.jpg,train\ngone.jpg,train\ndeep/../a.jpg,val\ndeep,train\na.jpg/x,train\n.,train\nloop,train\n"
    )
    sources = listed(folder, text)
    split = train(sources)
    assert {split.paths[i]: reason for i, reason in split.refused.items()} == {
        "gone.jpg": "missing: the list names it, but it is not there",
        "a.jpg/x": "missing: the list names it, but it is not there",
        "deep": "not an image: a folder",
        ".": "not an image: a folder",
    }
    assert dict(zip(split.paths, split.sizes.tolist(), strict=True))["loop"] == -1  # the worker says what it is
    assert sources.splits[1].refused == {0: "duplicate: listed twice"}
    assert len(sources) == 7


def test_a_root_elsewhere(folder, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("path\na.jpg\n../list.csv\n")
    with pytest.raises(DataError, match=r"none of the 2 files that .*list.csv names is in .* --root"):
        list_paths(file)
    sources = list_paths(file, root=folder)
    assert sources.root == folder
    assert train(sources).paths == ["../list.csv", "a.jpg"]
    assert list(train(sources).refused) == [0]


def test_names_that_would_break_what_shows_them(folder):
    split = train(listed(folder, b'path\n"a\nb.jpg"\nx\0y.jpg\na.jpg\n' + b"l" * 5000 + b"\n"))
    assert {split.paths[i]: reason for i, reason in split.refused.items()} == {
        r"a\nb.jpg": "unsafe name: it holds a zero byte or a line break",
        r"x\x00y.jpg": "unsafe name: it holds a zero byte or a line break",
        "l" * 200 + "...": "unsafe name: 5000 characters",
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.csv", b"path\ncaf\xe9.jpg\n", r"line 2: not UTF-8 \(b'caf\\xe9"),
        ("x.csv", "path\na.jpg\n".encode("utf-16"), "line 1: not UTF-8"),
        ("x.csv", b"path\n" + b"x" * (2 << 20), "line 2: longer than 1,048,576 bytes"),
        ("x.txt", b"x" * (2 << 20), "line 1: longer than 1,048,576 bytes"),
        ("x.csv", b"path," * 200_000 + b"\n", "has 200,001 columns; the limit is 1,000|longer than"),
        ("x.csv", b"path\n" + b"x" * 200_000, "line 2: field larger than field limit"),
        ("x.csv", b'path\n"a.jpg\nb.jpg\n', "unexpected end of data"),
        ("x.csv", b'path\n"a"b.jpg\n', "line 2: ',' expected after"),
        (
            "x.csv",
            b"path,label\na.jpg,1\ncat,dog.jpg,1\n",
            "line 3: 3 columns where there should be 2; quote",
        ),
        ("x.csv", b"", "x.csv is empty: it has no bytes"),
        (
            "x.csv",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer .`git lfs pull`",
        ),
        ("x.txt", b"<html>404</html>", "is an HTML page; .* fetch it again"),
        ("x.tsv", b'{"error": "gone"}', "is JSON; .* fetch it again"),
        ("x.csv", b"PK\x03\x04" + bytes(20), "is a ZIP archive; unpack it first"),
        ("x.csv", b"a.jpg,1,train,more\n", "has 4 columns, no header"),
        ("x.parquet", b"PAR1", "cut short"),
        ("x.doc", b"path\na.jpg\n", "not a list of paths"),
    ],
)
def test_lists_that_are_none_are_one_line(folder, name, text, expected):
    with pytest.raises((DataError, UsageError), match=expected) as caught:
        listed(folder, text, name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(DataError, match="not a regular file"):
        list_paths(tmp_path / "x.csv")


def test_an_empty_list_lists_nothing(folder, caplog):
    assert len(listed(folder, "path,label\n")) == 0
    assert "list.csv lists no images: it has no rows" in caplog.text
    assert len(listed(folder, "\n", "x.txt")) == 0
    with pytest.raises(DataError, match=r"column of paths is empty in all 2 rows of .*; name .* --image-column"):
        listed(folder, "path,label\n,0\n,1\n")


PARTS = st.sampled_from(["..", ".", "", "root", "deep", "er", "a.jpg", "x"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.tuples(st.booleans(), st.lists(PARTS, min_size=1, max_size=6)), min_size=1, max_size=6))
def test_nothing_outside_is_ever_read(folder, paths):
    texts = ["a.jpg"] + [(str(folder) + "/" if absolute else "") + "/".join(parts) for absolute, parts in paths]
    split = train(listed(folder, "".join(f'"{text}",1\n' for text in texts)))
    assert len(split) == len(texts)
    taken = [path for i, path in enumerate(split.paths) if i not in split.refused]
    assert len(set(taken)) == len(taken)
    for path in taken:
        assert ".." not in path.split("/")
        assert not path.startswith("/")


WORDS = st.text(string.ascii_letters + "0123456789 ,;\"'\t-äß", max_size=12)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=10), tab=st.booleans())
def test_labels_survive_every_way_of_quoting(folder, rows, tab):
    labels = parse_labels([label for label, _ in rows])
    assume(not any(isinstance(label, int) and label < -1 for label in labels))  # is refused
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t" if tab else ",")
    writer.writerow(["label", "path"])
    for i, (label, name) in enumerate(rows):
        writer.writerow([label, f"{i:02d}{name}x"])
        (folder / f"{i:02d}{name}x").touch()
    sources = listed(folder, file.getvalue(), "x.tsv" if tab else "x.csv")
    split = train(sources)
    assert split.paths == sorted((f"{i:02d}{name}x" for i, (_, name) in enumerate(rows)), key=os.fsencode)
    if None in labels or -1 in labels or any(isinstance(label, int) for label in labels):
        return
    assert [sources.class_names[label] for label in split.labels] == labels


@given(st.text(max_size=30))
def test_every_name_has_a_split(name):
    assert split_from_name(name) in ("train", "val", "test")
