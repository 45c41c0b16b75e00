"""Shards with masks: bytes untouched, all faults by name, and the same bytes whatever happened to the run."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from drawn import encoded
from killed_shards import shard_until_killed
from masked import as_png, draw_ids, draw_pairs, picture_of
from PIL import Image

from coma.errors import DataError, UsageError
from coma.shards.check.verify import verify
from coma.shards.describe.contact_sheet import contact_sheet
from coma.shards.describe.describe import as_json, describe
from coma.shards.images.masks import decode_mask
from coma.shards.index.index import index
from coma.shards.manifest import Manifest, read_info, read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

Contents = Callable[[Path], dict[str, bytes]]


def masks_of(manifest: Manifest) -> dict[str, bytes]:
    """{source of the mask: its bytes in the tar}."""
    rows = range(len(manifest))
    assert manifest.mask_offset is not None
    assert manifest.mask_size is not None
    found = {}
    for row, source in zip(rows, manifest.mask_sources(rows), strict=True):
        tar = (manifest.folder / manifest.shards[manifest.shard_id[row]]).read_bytes()
        found[source] = tar[manifest.mask_offset[row] :][: manifest.mask_size[row]]
    return found


def ids_of(manifest: Manifest) -> dict[str, npt.NDArray[np.uint8]]:
    """{source of the image: class ids}."""
    assert manifest.mask_coding is not None
    rows = range(len(manifest))
    sources = dict(zip(manifest.mask_sources(rows), manifest.sources(rows), strict=True))
    return {sources[mask]: decode_mask(data, manifest.mask_coding) for mask, data in masks_of(manifest).items()}


def accounts(out: Path) -> tuple[set[str], dict[str, str], dict[str, str]]:
    """What is kept, {set aside: reason} and {passed over: what it is}."""
    kept: set[str] = set()
    for manifest in out.glob("*/manifest.parquet"):
        table = pq.read_table(manifest)
        for column in ("source", "mask_source"):
            kept |= set(table[column].to_pylist()) if column in table.column_names else set()
    aside, beside = (pq.read_table(out / name).to_pylist() for name in ("quarantine.parquet", "passed_over.parquet"))
    return kept, {row["path"]: row["reason"] for row in aside}, {row["path"]: row["reason"] for row in beside}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, npt.NDArray[np.uint8]]]:
    """24 images with masks, a fifth held out: the source, the data set and the class ids."""
    folder = tmp_path_factory.mktemp("masked")
    drawn = draw_pairs(folder / "source", 24)
    shard(folder / "source", folder / "out", ShardOptions(shard_bytes=20_000, val_fraction=0.2, workers=1))
    return folder / "source", folder / "out", drawn


def test_bytes_are_untouched_and_the_classes_known(made) -> None:
    source, out, drawn = made
    found = {}
    for split in ("train", "val"):
        manifest = read_manifest(out, split)
        assert manifest.has_masks
        assert manifest.mask_classes == ("0", "1", "2", "3")
        assert manifest.mask_ignore == 255
        for name, data in masks_of(manifest).items():
            assert data == (source / name).read_bytes()
        found |= ids_of(manifest)
    assert found.keys() == drawn.keys()
    assert all(np.array_equal(found[name], drawn[name]) for name in drawn)
    assert len(read_manifest(out).shards) > 1
    assert verify(out, decode=True, workers=1).problems == ()
    masks = read_info(out)["coma"]["masks"]  # type: ignore[index]
    assert masks == {"classes": ["0", "1", "2", "3"], "values": [0, 1, 2, 3], "ignored": 255, "in_colour": False}


def test_stock_readers_see_the_image_and_the_mask_as_another_field(made, tmp_path: Path) -> None:
    import webdataset
    from nvidia.dali import fn, pipeline_def
    from timm.data import create_dataset

    source, out, _ = made
    tars = sorted(map(str, (out / "train").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    for sample in samples:
        about = json.loads(sample["json"])
        assert sample["jpg"] == (source / about["source"]).read_bytes()
        assert sample["mask.png"] == (source / about["mask_source"]).read_bytes()
    chosen = webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg;png")
    assert [image.size for (image,) in chosen] == [Image.open(io.BytesIO(sample["jpg"])).size for sample in samples]
    assert len(create_dataset("wds/", root=str(out), split="train", batch_size=1)) == len(samples)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def stock() -> object:
        indices = [tar.replace(".tar", ".idx") for tar in tars]
        kinds = ["jpg;png", "mask.png"]
        return tuple(
            fn.readers.webdataset(paths=tars, index_paths=indices, ext=kinds, missing_component_behavior="error")
        )

    pipeline = stock()
    pipeline.build()
    for sample in samples:
        image, mask = pipeline.run()
        assert np.array(image[0]).tobytes() == sample["jpg"]
        assert np.array(mask[0]).tobytes() == sample["mask.png"]


READ = """
import sys
from datasets import load_dataset
data = load_dataset(sys.argv[1])["train"]
print(len(data), data.features["jpg"], data.features["mask.png"], data[0]["jpg"].mode, data[0]["mask.png"].mode)
"""


@pytest.mark.slow
def test_datasets_reads_them_by_the_card(made, tmp_path: Path) -> None:
    _, out, _ = made
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", READ, str(out)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(len(read_manifest(out)))
    assert done.stdout.split()[-2:] == ["RGB", "L"]


def turned(orientation: int, width: int, height: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture_of(draw_ids(1, width, height), exif=exif)


FAULTS: dict[str, tuple[bytes, bytes, str]] = {
    "outside": (
        picture_of(draw_ids(1)),
        as_png(np.where(draw_ids(1) == 2, 9, draw_ids(1)).astype(np.uint8)),
        r"mask outside the classes: masks/outside.png holds 9; the classes are 0 to 3, 255 is none",
    ),
    "size": (
        picture_of(draw_ids(1)),
        as_png(draw_ids(1, 44, 30)),
        "mask of another size: masks/size.png has 44x30 pixels, its image is shown as 40x30",
    ),
    "exif": (
        turned(6, 40, 30),
        as_png(draw_ids(1, 40, 30)),
        "mask of another size: masks/exif.png has 40x30 pixels, its image is shown as 30x40 by its EXIF orientation: "
        "turn the mask as well",
    ),
    "damaged": (
        picture_of(draw_ids(1)),
        as_png(draw_ids(1))[:80],
        "mask damaged: masks/damaged.png: truncated: it ends before its IEND chunk",
    ),
    "empty": (picture_of(draw_ids(1)), b"", "mask damaged: masks/empty.png: empty"),
    "lossy": (
        picture_of(draw_ids(1)),
        encoded(1),
        "mask is lossy: masks/lossy.png is a JPEG, which changes values; save masks as PNG",
    ),
    "colours": (
        picture_of(draw_ids(1)),
        encoded(1, form="PNG"),
        "mask in colours: masks/colours.png has three channels; save class ids in one channel, or give a file of lines "
        "such as `128 64 0 road` as --mask-classes FILE",
    ),
    "bad": (b"\xff\xd8\xff no image", as_png(draw_ids(1)), "truncated"),
}


def test_every_fault_is_set_aside_by_name_and_every_file_accounted_for(tmp_path: Path) -> None:
    source = tmp_path / "source"
    draw_pairs(source, 20)
    for name, (image, mask, _) in FAULTS.items():
        (source / f"images/{name}.jpg").write_bytes(image)
        (source / f"masks/{name}.png").write_bytes(mask)
    (source / "images/lonely.jpg").write_bytes(picture_of(draw_ids(1)))
    (source / "masks/orphan.png").write_bytes(as_png(draw_ids(1)))
    (source / "images/turned.jpg").write_bytes(turned(6, 40, 30))
    (source / "masks/turned.png").write_bytes(as_png(draw_ids(1, 30, 40)))
    summary = shard(source, tmp_path / "out", ShardOptions(mask_classes="4", workers=1))
    kept, aside, beside = accounts(tmp_path / "out")
    assert {name: aside[f"images/{name}.jpg"] for name in FAULTS if name != "bad"} == {
        name: reason for name, (_, _, reason) in FAULTS.items() if name != "bad"
    }
    assert aside["images/bad.jpg"].startswith("truncated")
    assert aside["images/lonely.jpg"] == "mask missing: no mask goes by the image's name"
    assert aside["masks/orphan.png"] == "mask without image: no image goes by its name"
    assert beside == {f"masks/{name}.png": "mask of an image that was set aside" for name in FAULTS}
    everything = {str(path.relative_to(source)) for path in source.rglob("*.*")}
    assert sorted([*kept, *aside, *beside]) == sorted(everything)
    assert (summary.found, summary.kept, summary.set_aside) == (31, 21, 10)
    assert "images/turned.jpg" in kept
    assert verify(tmp_path / "out", decode=True, workers=1).problems == ()


def test_a_mask_that_has_changed_since_it_was_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coma.shards.write import writer

    source = tmp_path / "source"
    draw_pairs(source, 4)
    prepare = writer.prepare_run

    def prepare_then_change(*arguments: object) -> object:
        run = prepare(*arguments)  # type: ignore[arg-type]
        (source / "masks/1.png").write_bytes(b"x")
        (source / "masks/2.png").unlink()
        return run

    monkeypatch.setattr(writer, "prepare_run", prepare_then_change)
    shard(source, tmp_path / "out", ShardOptions(workers=1))
    _, aside, _ = accounts(tmp_path / "out")
    assert aside["images/1.jpg"].startswith("mask damaged: masks/1.png: changed: ")
    assert aside["images/2.jpg"] == "mask damaged: masks/2.png: vanished: it was there when the source was listed"


def test_resizing_takes_nearest_neighbours_and_keeps_palettes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    drawn = draw_pairs(source, 6, size=(96, 64))
    drawn |= draw_pairs(source, 1, first=6, size=(40, 30))  # small enough already
    palette = [i * 37 % 256 for i in range(768)]
    ids = draw_ids(0, 96, 64)
    (source / "masks/0.png").write_bytes(as_png(ids, palette))
    summary = shard(source, tmp_path / "out", ShardOptions(resize_px=32, workers=1, mask_classes="4"))
    assert summary.converted == {"resized": 6, "mask resized": 6}
    manifest = read_manifest(tmp_path / "out")
    found = ids_of(manifest)
    for name, of_image in drawn.items():
        if name != "images/6.jpg":
            height, width = found[name].shape
            rows, columns = (
                (2 * np.arange(height) + 1) * 64 // (2 * height),
                (2 * np.arange(width) + 1) * 96 // (2 * width),
            )
            assert (height, width) == (32, 48)
            assert np.array_equal(found[name], of_image[rows[:, None], columns[None, :]])
    masks = masks_of(manifest)
    assert masks["masks/6.png"] == (source / "masks/6.png").read_bytes()
    small = Image.open(io.BytesIO(masks["masks/0.png"]))
    assert small.mode == "P"
    assert small.getpalette()[: 3 * 4] == palette[: 3 * 4]  # type: ignore[index]
    assert verify(tmp_path / "out", decode=True, workers=1).problems == ()
    assert json.loads(_member(manifest, 0, "json")).keys() >= {"mask_source", "mask_xxh3_64"}


def _member(manifest: Manifest, row: int, extension: str) -> bytes:
    with tarfile.open(manifest.folder / manifest.shards[manifest.shard_id[row]]) as tar:
        file = tar.extractfile(f"{manifest.keys([row])[0]}.{extension}")
        assert file is not None
        return file.read()


def test_lossless_formats_become_png(tmp_path: Path) -> None:
    source = tmp_path / "source"
    drawn = draw_pairs(source, 8)
    for number, (form, extension) in enumerate((("TIFF", "tif"), ("BMP", "bmp"), ("PPM", "pgm"), ("GIF", "gif"))):
        ids = drawn[f"images/{number}.jpg"]
        if form == "GIF":  # whose writer numbers the colours that occur
            ids[ids == 255] = 0
        (source / f"masks/{number}.png").unlink()
        Image.fromarray(ids).save(source / f"masks/{number}.{extension}", form)
    summary = shard(source, tmp_path / "out", ShardOptions(workers=1, mask_classes="4"))
    assert summary.set_aside == 0
    assert sum(summary.converted.values()) == 4
    found = ids_of(read_manifest(tmp_path / "out"))
    assert all(np.array_equal(found[name], ids) for name, ids in drawn.items())


def test_the_same_bytes_for_any_workers_parts_and_resumption(made, tmp_path: Path, contents: Contents) -> None:
    source, out, _ = made
    options = {"shard_bytes": 20_000, "val_fraction": 0.2}
    expected = contents(out)
    shard(source, tmp_path / "two", ShardOptions(workers=2, **options))  # type: ignore[arg-type]
    assert contents(tmp_path / "two") == expected
    for part in ((2, 2), (1, 2)):
        shard(source, tmp_path / "parts", ShardOptions(workers=1, part=part, **options))  # type: ignore[arg-type]
    assert contents(tmp_path / "parts") == expected
    with pytest.raises(UsageError, match="is not empty"):
        shard(source, out, ShardOptions(workers=1, masks="none", **options))  # type: ignore[arg-type]


def test_a_killed_run_goes_on(made, tmp_path: Path, contents: Contents) -> None:
    source, out, _ = made
    options: dict[str, Any] = {"shard_bytes": 20_000, "val_fraction": 0.2, "workers": 1}
    shard_until_killed(source, tmp_path / "out", "worker:5", **options)
    with pytest.raises(DataError):
        read_manifest(tmp_path / "out")
    assert shard(source, tmp_path / "out", ShardOptions(**options)).kept_shards == 1
    assert contents(tmp_path / "out") == contents(out)


def test_verify_names_what_differs_in_a_mask(made, tmp_path: Path) -> None:
    _, out, _ = made
    manifest = read_manifest(out)
    assert manifest.mask_offset is not None
    tar = out / "train" / manifest.shards[0]
    data = tar.read_bytes()
    try:
        spoilt = bytearray(data)
        spoilt[manifest.mask_offset[0] + 50] ^= 1
        tar.write_bytes(spoilt)
        problems = verify(out, workers=1).problems
        assert [problem.reason for problem in problems] == [
            "its mask's bytes are not what they were (the hash differs)"
        ]
        assert problems[0].key == manifest.keys([0])[0]
        tar.write_bytes(data.replace(b".mask.png\0", b".mosk.png\0", 1))
        assert any("mask.png" in problem.reason or "damaged" in problem.reason for problem in verify(out).problems)
    finally:
        tar.write_bytes(data)


def test_inspect_shows_masks(made, tmp_path: Path) -> None:
    _, out, _ = made
    description = describe(out)
    (train, _) = description.splits
    assert train.masks is not None
    assert sum(train.masks.classes.values()) == pytest.approx(1, abs=1e-3)
    assert train.masks.images == train.samples
    assert as_json(description)["mask_classes"] == ["0", "1", "2", "3"]
    card = (out / "README.md").read_text()
    assert "segmentation mask of its size, `KEY.mask.png`, of 4 classes" in card
    assert "- image-segmentation" in card
    sheet = contact_sheet(out)
    shard(made[0], tmp_path / "plain", ShardOptions(masks="none", shard_bytes=20_000, val_fraction=0.2, workers=1))
    plain = contact_sheet(tmp_path / "plain")
    assert sheet.size[0] == plain.size[0]
    assert sheet.size[1] > plain.size[1]  # the legend
    assert "mask_classes" not in as_json(describe(tmp_path / "plain"))


def test_an_index_and_another_packing_take_masks_for_other_pictures(made, tmp_path: Path) -> None:
    _, out, _ = made
    summary = index(out / "train", tmp_path / "index", workers=1)
    assert summary.passed_over["other picture of its sample"] == summary.kept == len(read_manifest(out))
    assert verify(tmp_path / "index", workers=1).problems == ()
    again = shard(out / "train", tmp_path / "again", ShardOptions(workers=1))
    assert again.passed_over["other picture of its sample"] == again.kept == summary.kept


def test_duplicates(tmp_path: Path) -> None:
    source = tmp_path / "source"
    draw_pairs(source, 6)
    for folder, ending in (("images", "jpg"), ("masks", "png")):
        (source / f"{folder}/9.{ending}").write_bytes((source / f"{folder}/0.{ending}").read_bytes())
    summary = shard(source, tmp_path / "out", ShardOptions(workers=1, dedupe=True))
    kept, aside, beside = accounts(tmp_path / "out")
    assert summary.kept == 6
    assert aside == {"images/9.jpg": "duplicate: the same bytes as images/0.jpg"}
    assert beside == {"masks/9.png": "mask of an image that was set aside"}
    assert len(kept) == 12


def test_colours_by_a_file_of_classes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    drawn = draw_pairs(source, 5)
    colours = np.array([[128, 64, 0], [0, 0, 192], [10, 20, 30], [10, 20, 31]], np.uint8)
    table = np.concatenate([colours, np.zeros((252, 3), np.uint8)])
    for name, ids in drawn.items():
        mask = source / name.replace("images", "masks").replace("jpg", "png")
        Image.fromarray(table[ids]).save(mask)
    lines = [f"{r} {g} {b} class {i}" for i, (r, g, b) in enumerate(colours.tolist())]
    (tmp_path / "names.txt").write_text("\n".join(lines))
    options = ShardOptions(mask_classes=str(tmp_path / "names.txt"), mask_ignore=0, resize_px=24, workers=1)
    assert shard(source, tmp_path / "out", options).set_aside == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.mask_classes == ("class 0", "class 1", "class 2", "class 3")
    for name, ids in ids_of(manifest).items():
        assert Counter(np.unique(ids).tolist()) == Counter(np.unique(drawn[name]).tolist())
    assert verify(tmp_path / "out", decode=True, workers=1).problems == ()
