"""docs/shards.md names flags that exist, and its lines run."""

import io
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrays import write_arrays
from drawn import encoded, shard_images
from masked import draw_pairs

from coma.shards.sources.detect import list_source
from coma.shards.sources.listing import LAYOUTS
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

TEXT = (Path(__file__).parents[2] / "docs" / "shards.md").read_text()


def test_every_flag_exists(monkeypatch, capsys):
    from coma.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    known = ""
    for command in ("shard", "index", "inspect", "verify"):
        monkeypatch.setattr(sys, "argv", ["coma", command, "--help"])
        with pytest.raises(SystemExit):
            main()
        known += capsys.readouterr().out
    flags = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert len(flags) > 10
    assert {flag for flag in flags if not re.search(rf"{flag}\b", known)} == set()


def test_every_layout_is_there():
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.M) == list(LAYOUTS)


ROWS = re.findall(r"^\| (`[^|]*\.(?:jpg|tar|parquet)\b[^|]*) \| ([^|]*\d; [^|]*) \|$", TEXT, re.M)


@pytest.mark.parametrize(("files", "taken_as"), ROWS, ids=[files.split("`")[1] for files, _ in ROWS])
def test_every_layout_is_taken_as_is_written(files: str, taken_as: str, tmp_path: Path) -> None:
    paths = re.findall(r"`([^`]+)`", files)
    source = miniature(tmp_path / "source", paths)
    found = list_source(source / paths[0] if paths[0].endswith(".csv") else source)
    splits = ", ".join(f"{split.name} {len(split) - len(split.refused)}" for split in found.splits)
    assert f"{splits}; {', '.join(found.class_names or ('no labels',))}" == taken_as


PAIRS = re.findall(r"^\| (`[^|]*) \| (\S+) with (\S+) \|$", TEXT, re.M)


@pytest.mark.parametrize(("files", "image", "mask"), PAIRS, ids=[mask for _, _, mask in PAIRS])
def test_masks_are_paired_as_is_written(files: str, image: str, mask: str, tmp_path: Path) -> None:
    assert re.findall(r"`([^`]+)`", files) == [image, mask]
    draw_pairs(tmp_path, 1, images=image, masks=mask)
    (split,) = list_source(tmp_path).splits
    assert split.masks is not None
    assert (split.paths, split.masks.paths, split.refused) == ([image], [mask], {})


CODE = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)


def test_masks_are_read_as_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    drawn = draw_pairs(tmp_path / "roads", 4, classes=3)
    (tmp_path / "roads/classes.txt").write_text("road\npavement\ncar\n")
    shard_images(tmp_path / "roads", tmp_path / "roads-shards")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(next(block for block in CODE if "MaskReader" in block), names)
    assert capsys.readouterr().out == "('road', 'pavement', 'car')\n"
    assert (names["mask"] == drawn[names["manifest"].sources([0])[0]]).all()


def test_samples_of_any_channels_are_read_as_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = write_arrays(tmp_path / "scenes", channels=13, per_class=1)
    shard(tmp_path / "scenes", tmp_path / "scenes-shards", ShardOptions(channels=13, workers=1))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    block = next(block for block in CODE if "read_window" in block)
    exec(block.replace("height=64, width=64", "height=16, width=16"), names)
    assert names["manifest"].pixels.identity == "13 channels of uint16"
    assert (names["pixels"] == drawn[names["manifest"].sources([0])[0]][:16, :16]).all()


def test_there_are_layouts() -> None:
    assert len(ROWS) > 15
    assert len(PAIRS) > 5


def miniature(root: Path, paths: list[str]) -> Path:
    """Make the files, of which those below a tar are its members; a table has two images, of a cat and of a dog."""
    members: dict[str, dict[str, bytes]] = {}
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True) if ".tar/" not in path else root.mkdir(exist_ok=True)
        if ".tar/" in path:
            tar, _, member = path.partition(".tar/")
            members.setdefault(f"{tar}.tar", {})[member] = b"cat" if path.endswith(".cls") else encoded(number, 8, 8)
        elif path.endswith(".parquet"):
            images = [{"bytes": encoded(number + i, 8, 8), "path": None} for i in range(2)]
            pq.write_table(pa.table({"image": images, "label": ["cat", "dog"]}), root / path)
        elif path.endswith(".csv"):
            (root / path).write_text(
                "path,label\n" + "".join(f"{paths[1 + i]},{('cat', 'dog')[i]}\n" for i in range(2))
            )
        else:
            (root / path).write_bytes(encoded(number, 8, 8))
    for tar, files in members.items():
        (root / tar).write_bytes(packed(files))
    return root


def packed(files: dict[str, bytes]) -> bytes:
    """A tar; a member below another tar's name is packed into that."""
    inner: dict[str, dict[str, bytes]] = {}
    for name in [name for name in files if ".tar/" in name]:
        tar, _, member = name.partition(".tar/")
        inner.setdefault(f"{tar}.tar", {})[member] = files[name]
    whole = {name: data for name, data in files.items() if ".tar/" not in name}
    whole |= {name: packed(of_tar) for name, of_tar in inner.items()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar_file:
        for name, data in whole.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar_file.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def test_other_readers(tmp_path, tree, monkeypatch):
    """All but `datasets`, which test_stock_readers.py runs in a process without the Hub."""
    shard_images(tree(tmp_path / "imagenet"), tmp_path / "imagenet-shards")
    monkeypatch.chdir(tmp_path)
    code = next(block for block in CODE if "import datasets" in block)
    names: dict[str, Any] = {}
    exec(code.replace("import datasets, timm", "import timm").partition("hub = ")[0], names)
    assert len(list(names["samples"])) == len(names["timms"]) == 18
