"""Every file of a source is kept, set aside or passed over, whatever the source looks like."""

import contextlib
import gzip
import io
import logging
import os
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from drawn import encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked import as_png, draw_ids

from coma.errors import ComaError, DataError, UsageError
from coma.shards.check.verify import verify
from coma.shards.index.index import index
from coma.shards.sources.detect import list_source
from coma.shards.sources.masks.options import MaskOptions
from coma.shards.sources.masks.pairs import NO_MASKS
from coma.shards.sources.splits import held_out, parse_splits
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

IMAGE = encoded(0, 8, 8)
MASK = as_png(draw_ids(0, 8, 8))
FOLDERS = (
    "train",
    "val2017",
    "test",
    "cat",
    "dog",
    "images",
    "masks",
    "annotations",
    "pets10",
    "dev set",
    "test_tube",
    ".git",
    "__MACOSX",
    "ü",
)
FILES = (
    "1.jpg",
    "2.PNG",
    "1.png",
    "1_mask.png",
    "val_3.jpg",
    "notes.txt",
    "README",
    "a.tar.gz",
    ".hidden.jpg",
    "4.mpo",
    "raw.dng",
    "photo",
    "x.jpg~",
    "5.npy",
)

paths = st.builds(
    lambda folders, name: "/".join((*folders, name)),
    st.lists(st.sampled_from(FOLDERS), max_size=4),
    st.sampled_from(FILES),
)
contents = st.sampled_from((IMAGE, MASK, b"", b"no image at all"))
trees = st.dictionaries(paths, contents, min_size=1, max_size=12)


def write(root: Path, tree: dict[str, bytes], links: list[tuple[str, str]]) -> None:
    for path, data in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    for link, target in links:
        place = (root / target).with_name(link)
        if not place.exists():
            place.symlink_to(root / target if target in tree else root)


def found_by_name(path: str, arrays: bool) -> bool:
    """Whether a file of the trees above is an image by its name, and not hidden."""
    endings = (".jpg", ".PNG", ".png", ".mpo", ".dng", *((".npy",) if arrays else ()))
    return path.endswith(endings) and "/." not in f"/{path}" and "__MACOSX/" not in path


def everything_below(root: Path) -> Counter[str]:
    """Paths of all files, through links to folders but not round in a circle, whose links count as files."""
    found: Counter[str] = Counter()

    def walk(folder: Path, above: tuple[str, ...]) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and os.path.realpath(path) not in above:
                walk(path, (*above, os.path.realpath(path)))
            else:
                found[str(path.relative_to(root))] += 1

    walk(root, (os.path.realpath(root),))
    return found


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=trees,
    links=st.lists(st.tuples(st.sampled_from(("link", "l.jpg", "gone.png")), paths), max_size=2),
    arrays=st.booleans(),
)
def test_each_file_is_in_one_account_and_none_that_is_held_out_is_trained_on(
    tree: dict[str, bytes], links: list[tuple[str, str]], arrays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coma")
    caplog.clear()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        try:
            write(root, tree, links)
        except OSError:  # a file where another path has a folder
            return
        told = False
        try:
            found = list_source(root, arrays=arrays)
        except UsageError:
            told = True
            found = list_source(root, splits=parse_splits("train=."), layout="flat", arrays=arrays)
        except DataError:
            assert not any(found_by_name(path, arrays) for path in tree)
            return
        accounts = Counter(path for split in found.splits for path in split.paths) + Counter(found.passed_over.paths)
        masks = [split.masks.paths for split in found.splits if split.masks is not None]
        accounts += Counter(path for of_split in masks for path in of_split if path)
        assert accounts == everything_below(root)
        for split in found.splits if not told else ():
            kept = [path for i, path in enumerate(split.paths) if i not in split.refused]
            suspicious = [path for path in kept if split.name == "train" and held_out(path)]
            assert not suspicious or "speaks of validation or test" in caplog.text or "speak of" in caplog.text


def packed(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tars=st.dictionaries(st.sampled_from(("train-0.tar", "val.tar", "a/b.tar", "photos.tar")), trees, min_size=1),
    beside=st.dictionaries(paths, st.just(b"x"), max_size=3),
    layout=st.sampled_from(("tar", "webdataset")),
    arrays=st.booleans(),
)
def test_each_member_of_a_tar_is_in_one_account(
    tars: dict[str, dict[str, bytes]],
    beside: dict[str, bytes],
    layout: str,
    arrays: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "coma")
    caplog.clear()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        for name, members in tars.items():
            packed(root / name, members)
        write(root, {path: data for path, data in beside.items() if path not in ("a", "a/b.tar")}, [])
        told = False
        try:
            found = list_source(root, layout=layout, arrays=arrays)
        except UsageError:
            told = True
            found = list_source(
                root, layout=layout, splits=parse_splits("train=."), masks=MaskOptions(NO_MASKS), arrays=arrays
            )
        except DataError:
            assert not any(found_by_name(path, arrays) for members in tars.values() for path in members)
            return
        listings = [part for split in found.splits for part in (split, split.masks) if part is not None]
        files = Counter(path for part in listings for path in part.files if path) + Counter(
            path.partition(".tar/")[0] + ".tar" for path in found.passed_over.paths if ".tar/" in path
        )
        assert files == {name: len(members) for name, members in tars.items()}
        others = {path for path in found.passed_over.paths if ".tar/" not in path}
        assert others == set(everything_below(root)) - set(tars)
        for split in found.splits if not told else ():
            kept = [path for i, path in enumerate(split.paths) if i not in split.refused]
            suspicious = [path for path in kept if split.name == "train" and held_out(path)]
            assert not suspicious or "of validation or test" in caplog.text


def accounts_of(out: Path) -> tuple[set[str], set[str], dict[str, str]]:
    """Sources of the samples, paths in the quarantine, and {path: kind} of what was passed over."""
    kept = {row for path in out.glob("*/manifest.parquet") for row in pq.read_table(path)["source"].to_pylist()}
    aside, beside = (pq.read_table(out / name).to_pylist() for name in ("quarantine.parquet", "passed_over.parquet"))
    return kept, {row["path"] for row in aside}, {row["path"]: row["reason"] for row in beside}


def test_the_tables_of_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    names = (
        "cat/1.jpg",
        "cat/2.jpx",
        "cat/hash",
        "dog/broken.png",
        "cat/1.txt",
        "labels.xml",
        ".DS_Store",
        "old.tar.gz",
    )
    for name in (*names, "dog/x.dng"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(IMAGE if "broken" not in name else b"x")
    (source / "round").symlink_to(source)
    summary = shard(source, tmp_path / "out", ShardOptions(workers=1))
    kept, aside, beside = accounts_of(tmp_path / "out")
    assert kept == {"cat/1.jpg", "cat/2.jpx", "cat/hash"}
    assert aside == {"dog/broken.png", "dog/x.dng"}
    assert beside == {
        "cat/1.txt": ".txt",
        "labels.xml": ".xml",
        ".DS_Store": "hidden",
        "old.tar.gz": ".tar.gz",
        "round": "link in a circle",
    }
    assert summary.passed_over == Counter(beside.values())
    assert verify(tmp_path / "out").problems == ()
    (tmp_path / "out/passed_over.parquet").unlink()
    assert "passed_over.parquet" in str(verify(tmp_path / "out").problems)


@pytest.mark.parametrize("command", [shard, index])
def test_the_tables_of_samples(command, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "wds"
    members = {"1.v2.jpg": IMAGE, "1.cls": b"cat", "2.jpg": IMAGE, "2.seg.png": IMAGE, "2.cls": b"dog"}
    members |= {
        "3.left.jpg": IMAGE,
        "3.right.jpg": IMAGE,
        "3.cls": b"cat",
        "4.cls": b"dog",
        "README": b"x",
        "7.nef": b"x",
    }
    packed(source / "0000.tar", members)
    packed(tmp_path / "elsewhere/0001.tar", {"5.image": IMAGE, "5.cls": b"dog", "6.txt": b"x"})
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "0002.tar.gz").write_bytes(gzip.compress(b"x"))
    summary = command(
        source, tmp_path / "out", **{"workers": 1} if command is index else {"options": ShardOptions(workers=1)}
    )
    kept, aside, beside = accounts_of(tmp_path / "out")
    assert kept == {"0000.tar/1.v2.jpg", "0000.tar/2.jpg", "0000.tar/3.left.jpg", "linked/0001.tar/5.image"}
    assert aside == {"0000.tar/3.right.jpg", "0000.tar/7.nef"}
    assert beside == {
        "0000.tar/2.seg.png": "other picture of its sample",
        "0000.tar/4.cls": "sample without image",
        "0000.tar/README": "no extension",
        "linked/0001.tar/6.txt": "sample without image",
        "0002.tar.gz": ".tar.gz",
    }
    assert summary.passed_over == Counter(beside.values())
    labels = pq.read_table(tmp_path / "out/train/manifest.parquet").to_pylist()
    assert {row["source"][-9:]: row["label"] for row in labels} == {
        "/1.v2.jpg": 0,
        "tar/2.jpg": 1,
        ".left.jpg": 0,
        "r/5.image": 1,
    }
    assert "1 packed file is not read, such as 0002.tar.gz" in caplog.text


def test_samples_of_two_splits_in_one_tar(tmp_path: Path) -> None:
    packed(
        tmp_path / "wds/0000.tar", {"train/1.jpg": IMAGE, "train/1.cls": b"0", "val/2.jpg": IMAGE, "val/2.cls": b"0"}
    )
    with pytest.raises(UsageError, match=r"0000.tar has samples that are not to be trained on .* val/2, .*coma shard"):
        index(tmp_path / "wds", tmp_path / "idx", workers=1)
    assert {split.name: len(split) for split in list_source(tmp_path / "wds").splits} == {"train": 1, "val": 1}


def test_two_layouts_beside_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "teaser.jpg").write_bytes(IMAGE + bytes(4000))
    packed(tmp_path / "0000.tar", {"1.jpg": IMAGE, "1.cls": b"0"})
    with pytest.raises(UsageError, match=r"holds 1 image and 1 .tar file: say .* --layout folder or --layout tar"):
        list_source(tmp_path)
    packed(tmp_path / "0000.tar", {f"{i}.{kind}": IMAGE for i in range(99) for kind in ("jpg", "cls")})
    found = list_source(tmp_path)
    assert (found.layout, len(found), found.passed_over.paths) == ("webdataset", 99, ["teaser.jpg"])
    assert "taken is 1 .tar file; --layout folder or --layout tar says otherwise" in caplog.text


def test_a_folder_that_may_not_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(IMAGE)
    scandir = os.scandir

    def closed(path: str) -> object:  # root, who runs tests in containers, may read everything
        if str(path).rstrip("/").endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = list_source(tmp_path)
    assert dict(zip(found.passed_over.paths, found.passed_over.kinds, strict=True)) == {"dog/": "unreadable folder"}
    assert "dog/, which cannot be listed: Permission denied" in caplog.text


def test_dates_and_depths_beyond_the_usual(tmp_path: Path) -> None:
    deep = tmp_path / "photos/cat"
    deep.mkdir(parents=True)
    (deep / "1.jpg").write_bytes(IMAGE)
    os.utime(deep / "1.jpg", (10413792000, 10413792000))  # the year 2300
    try:
        with contextlib.chdir(deep):
            for _ in range(1100):
                Path("d").mkdir()
                os.chdir("d")
            Path("2.jpg").write_bytes(IMAGE)
        summary = shard(tmp_path / "photos", tmp_path / "out", ShardOptions(workers=1))
    finally:
        subprocess.run(["rm", "-rf", deep], check=True)  # too deep for pytest's own way
    assert (summary.kept, summary.set_aside) == (2, 0)


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"x")
    with pytest.raises(ComaError, match=r"no images in .*; it has 1 file \(1 .txt\)"):
        list_source(tmp_path)
