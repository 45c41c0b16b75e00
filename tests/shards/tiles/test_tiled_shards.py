"""Data sets of tiles: pixels, places, splits, accounts, and the same bytes however they are made."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from helpers.large import assert_cut, noise, set_aside, tiles_of
from PIL import Image

from coma.errors import DataError, UsageError
from coma.shards.check.verify import verify
from coma.shards.images.array_files.facts import Window
from coma.shards.images.formats import BadImageError
from coma.shards.images.options import PixelOptions
from coma.shards.index.index import index
from coma.shards.manifest import load_manifests, read_info, read_manifest
from coma.shards.tiles.encode import encode_tile, is_empty
from coma.shards.tiles.grid import image_of, place_in
from coma.shards.tiles.options import TileOptions
from coma.shards.tiles.pictures import open_picture
from coma.shards.tiles.tiff_windows import TiffPicture
from coma.shards.write.dry_run import dry_run
from coma.shards.write.options import ShardOptions
from coma.shards.write.resume import inspect_out, locked_run
from coma.shards.write.run import prepare_run
from coma.shards.write.writer import shard

TILE = 64


def write_rgb(source: Path) -> dict[str, npt.NDArray[Any]]:
    """Write images that are read by window and such that are not; return their pixels."""
    (source / "a").mkdir(parents=True)
    (source / "b").mkdir()
    made: dict[str, npt.NDArray[Any]] = {}

    def tiff(path: str, height: int, width: int, **how: Any) -> None:
        made[path] = noise(height, width, 3, seed=len(made))
        is_planar = "planarconfig" in how
        tifffile.imwrite(
            source / path, np.moveaxis(made[path], 2, 0) if is_planar else made[path], photometric="rgb", **how
        )

    tiff("a/tiled.tif", 150, 200, tile=(32, 48), compression="deflate", predictor=True)
    tiff("a/strips.tif", 130, 900, rowsperstrip=100, compression="deflate")
    tiff("a/planes.tif", 100, 120, planarconfig="separate", tile=(64, 64))
    tiff("b/big.btf", 140, 65, bigtiff=True, byteorder=">", rowsperstrip=7)
    tiff("b/raw.tif", 128, 64)
    made["b/photo.png"] = noise(90, 140, 3, seed=20)
    Image.fromarray(made["b/photo.png"]).save(source / "b/photo.png")
    made["b/small.png"] = noise(20, 90, 3, seed=21)
    Image.fromarray(made["b/small.png"]).save(source / "b/small.png")
    return made


def tiff_bytes(pixels: npt.NDArray[Any], **how: Any) -> bytes:
    """Return a TIFF of pixels."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **how)
    return file.getvalue()


def files(data: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a data set that do not tell when or where it was made."""
    kept = sorted(path for path in data.rglob("*") if path.is_file() and path.name != ".coma-sources.json")
    return {str(path.relative_to(data)): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, npt.NDArray[Any]], Path]:
    """Return a source, its pixels, and its tiles."""
    folder = tmp_path_factory.mktemp("rgb")
    made = write_rgb(folder / "source")
    shard(folder / "source", folder / "out", ShardOptions(tile=TILE, workers=1, shard_bytes=200_000))
    return folder / "source", made, folder / "out"


def test_tiles_have_the_pixels_of_their_places(rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path]) -> None:
    _, made, out = rgb
    tiles = tiles_of(out)
    assert {image_of(name) for name in tiles} == made.keys()
    for path, image in made.items():
        assert_cut(tiles, path, image, TILE)
    assert not set_aside(out)
    manifest = read_manifest(out)
    rows = range(len(manifest))
    for key, name, label in zip(manifest.keys(rows), manifest.sources(rows), manifest.label.tolist(), strict=True):  # type: ignore[union-attr]
        left, top = place_in(name) or (-1, -1)
        assert key.endswith(f"-x{left}-y{top}")
        assert label == (name[0] == "b")


def test_verify_checks_tiles(rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path) -> None:
    assert not verify(rgb[2]).problems


def test_two_workers_give_the_same_bytes(rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path) -> None:
    source, _, out = rgb
    options = ShardOptions(tile=TILE, shard_bytes=200_000, workers=2)
    shard(source, tmp_path / "two", options)
    assert files(tmp_path / "two") == files(out)
    assert shard(source, tmp_path / "two", options).kept_shards > 0


@pytest.mark.slow
def test_parts_of_an_array_job_give_the_same_bytes(
    rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path
) -> None:
    source, _, out = rgb
    options: dict[str, Any] = {"tile": TILE, "shard_bytes": 200_000, "workers": 1}
    for part in ((2, 2), (1, 2)):
        shard(source, tmp_path / "parts", ShardOptions(**options, part=part))
    assert files(tmp_path / "parts") == files(out)
    assert not (tmp_path / "parts/.coma-shard").exists()


def test_a_run_that_is_killed_is_resumed_to_the_same_bytes(
    rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path
) -> None:
    source, _, out = rgb
    command = [sys.executable, "-m", "coma", "shard", str(source), str(tmp_path / "out")]
    command += ["--tile", str(TILE), "--shard-bytes", "200000", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("train/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shard(source, tmp_path / "out", ShardOptions(tile=TILE, workers=1, shard_bytes=200_000))
    assert files(tmp_path / "out") == files(out)


def test_tiles_of_one_image_are_in_one_split(
    rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path
) -> None:
    source, made, _ = rgb
    run = prepare_run(source, tmp_path / "out", ShardOptions(tile=TILE, val_fraction=0.3), None)
    images: dict[str, set[str]] = {}
    for split in run.splits:
        listing = run.listing_of(split)
        images[split.name] = {image_of(listing.image(int(i)).path) for i in split.order}
    assert not images["train"] & images["val"]
    assert images["train"] | images["val"] == made.keys()
    assert len(images["val"]) == 2
    assert sum(len(split.order) for split in run.splits) == len(run.listing)


def test_tiles_in_tars_are_known_by_the_images_they_were_cut_from(
    rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path
) -> None:
    """Downloaded without their manifest, then indexed where they lie, sharded again, split, and cut again."""
    _, made, out = rgb
    tars = tmp_path / "tars"
    tars.mkdir()
    for tar in (out / "train").glob("*.tar"):
        shutil.copy(tar, tars / f"slides-{tar.name}")
    assert len(list(tars.iterdir())) > 1, "an image's tiles are to lie in several tars"
    index(tars, tmp_path / "index")
    shard(tars, tmp_path / "again", ShardOptions(workers=1))
    of_out = read_manifest(out)
    tiles = sorted(of_out.sources(range(len(of_out))))
    for data in (tmp_path / "index", tmp_path / "again"):
        manifest = read_manifest(data)
        assert sorted(manifest.sources(range(len(manifest)))) == tiles
    run = prepare_run(tars, tmp_path / "split", ShardOptions(val_fraction=0.3), None)
    images = {
        split.name: {image_of(run.listing_of(split).image(int(i)).path) for i in split.order} for split in run.splits
    }
    assert not images["train"] & images["val"]
    assert images["train"] | images["val"] == made.keys()
    shard(tars, tmp_path / "cut", ShardOptions(tile=TILE // 2, workers=1))
    manifest = read_manifest(tmp_path / "cut")
    assert {image_of(name) for name in manifest.sources(range(len(manifest)))} == made.keys()


def test_a_sample_that_only_says_it_is_a_tile_keeps_its_own_name(tmp_path: Path) -> None:
    pixels = io.BytesIO()
    Image.fromarray(noise(32, 32, 3)).save(pixels, "PNG")
    with tarfile.open(tmp_path / "train-000000.tar", "w") as archive:
        said = {"a-x0-y0": "slide@x=8,y=0", "b": "slide@x=0,y=0", "c-x0-y8": 8, "d-x1-y1": "\ud800@x=1,y=1"}
        for key, source in said.items():
            for ending, data in (("png", pixels.getvalue()), ("json", json.dumps({"source": source}).encode())):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    shard(tmp_path / "train-000000.tar", tmp_path / "out", ShardOptions(workers=1))
    manifest = read_manifest(tmp_path / "out")
    names = {f"train-000000.tar/{key}.png" for key in ("a-x0-y0", "b", "c-x0-y8")} | {r"\ud800@x=1,y=1"}
    assert set(manifest.sources(range(len(manifest)))) == names


@pytest.mark.parametrize("dtype", [pytest.param("uint16", marks=pytest.mark.slow), "float32"])
def test_tiles_of_channels_keep_their_depth_and_are_counted_exactly(tmp_path: Path, dtype: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    made = {
        "tiled.tif": noise(100, 130, 5, 1, dtype),
        "strips.tif": noise(70, 1000, 5, 2, dtype),
        "array.npy": noise(90, 64, 5, 3, dtype),
        "first.npy": noise(65, 66, 5, 4, dtype),
    }
    how: dict[str, Any] = {"photometric": "minisblack", "compression": "deflate", "planarconfig": "contig"}
    tifffile.imwrite(source / "tiled.tif", made["tiled.tif"], tile=(32, 32), **how)
    tifffile.imwrite(source / "strips.tif", made["strips.tif"], rowsperstrip=64, **how)
    np.save(source / "array.npy", made["array.npy"])
    np.save(source / "first.npy", np.moveaxis(made["first.npy"], 2, 0).copy())
    np.save(source / "other.npy", noise(65, 66, 4, 4, dtype))
    shard(source, tmp_path / "out", ShardOptions(tile=TILE, channels=5, workers=1))
    tiles = tiles_of(tmp_path / "out")
    for path, image in made.items():
        assert_cut(tiles, path, image, TILE)
    assert set_aside(tmp_path / "out") == {"other.npy": "other channels: 4 channels, where --channels says 5"}
    pixels = read_manifest(tmp_path / "out").pixels
    assert pixels is not None
    assert pixels.dtype == dtype
    values = np.concatenate([tile.reshape(-1, 5) for tile in tiles.values()]).astype(np.float64)
    np.testing.assert_allclose(pixels.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pixels.std, values.std(axis=0), rtol=1e-12)
    assert not verify(tmp_path / "out").problems


def test_empty_tiles_are_left_out_by_name_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    image = noise(128, 192, 3)
    image[:64, 64:128] = 200
    image[64:, :64] = 7
    image[64, 0] = 9  # a deviation of 0.03
    tifffile.imwrite(source / "slide.tif", image, photometric="rgb", tile=(64, 64))
    Image.fromarray(image).save(source / "photo.png")
    summary = shard(source, tmp_path / "out", ShardOptions(tile=TILE, empty_below=1.0, workers=1))
    reason = "empty tile: the deviation of every channel is below 1 (--empty-below)"
    empty = {f"{name}@{at}": reason for name in ("slide.tif", "photo.png") for at in ("x=64,y=0", "x=0,y=64")}
    assert set_aside(tmp_path / "out") == empty
    assert (summary.found, summary.kept, summary.reasons) == (12, 8, {"empty tile": 4})
    assert is_empty(image[64:, :64], 0.04)
    assert not is_empty(image[64:, :64], 0.01)
    for dtype in ("uint8", "uint16", "int16", "float32"):
        values = noise(600, 30, 2, dtype=dtype)
        greatest = values.reshape(-1, 2).astype(np.float64).std(axis=0).max().item()
        assert [is_empty(values, greatest * by) for by in (0.9999, 1.0001, 1e300)] == [False, True, True]


def test_a_damaged_image_is_named_once_and_damaged_tiles_by_their_places(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    image = noise(128, 192, 3)
    how: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate"}
    good = tiff_bytes(image, **how)
    (source / "good.tif").write_bytes(good)
    (source / "cut.tif").write_bytes(good[: len(good) // 2])
    (source / "words.tif").write_bytes(b"not an image at all")
    turned = tiff_bytes(image, extratags=[(274, 3, 1, 3, True)], **how)  # Pillow decodes it whole, up to the damage
    for name, data in (("hurt.tif", bytearray(good)), ("whole.tif", bytearray(turned))):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            at = file.pages[0].dataoffsets[4]  # type: ignore[union-attr]
        data[at : at + 50] = bytes(50)
        (source / name).write_bytes(data)
    summary = shard(source, tmp_path / "out", ShardOptions(tile=TILE, workers=1))
    reasons = set_aside(tmp_path / "out")
    every = {f"whole.tif@x={x},y={y}" for x in (0, 64, 128) for y in (0, 64)}
    assert reasons.keys() == {"cut.tif", "words.tif", "hurt.tif@x=64,y=64"} | every
    assert reasons["cut.tif"] == "truncated: it ends before its pixels (all 6 tiles are lost)"
    assert (summary.found, summary.kept) == (20, 11)
    assert_cut(tiles_of(tmp_path / "out"), "good.tif", image, TILE)


def test_levels_of_a_slide_are_no_images(tmp_path: Path) -> None:
    """They are marked as reduced copies, or have the proportions of the first picture, as a scanner writes them."""
    source = tmp_path / "source"
    source.mkdir()
    image = noise(256, 384, 3)
    for name, mark in (("marked.tif", 1), ("plain.svs", 0)):
        with tifffile.TiffWriter(source / name) as tiff:
            tiff.write(image, photometric="rgb", tile=(64, 64))
            tiff.write(image[::4, ::4], photometric="rgb", subfiletype=mark)
    with tifffile.TiffWriter(source / "pages.tif") as tiff:
        for _ in range(2):
            tiff.write(image, photometric="rgb")
    shard(source, tmp_path / "out", ShardOptions(tile=TILE, workers=1, max_pixels=1000))  # no limit where it is cut
    assert not verify(tmp_path / "out").problems
    tiles = tiles_of(tmp_path / "out")
    for name in ("marked.tif", "plain.svs"):
        assert_cut(tiles, name, image, TILE)
    assert set_aside(tmp_path / "out").keys() == {"pages.tif"}


@pytest.mark.parametrize("photometric", [pytest.param("rgb", marks=pytest.mark.slow), "ycbcr"])
def test_slides_of_jpegs_are_read_by_window(tmp_path: Path, photometric: str) -> None:
    """Pillow writes them with tables that all blocks share, as scanners do."""
    (tmp_path / "source").mkdir()
    smooth = np.asarray(Image.fromarray(noise(24, 40, 3)).resize((640, 384)))
    mode = Image.fromarray(smooth) if photometric == "rgb" else Image.fromarray(smooth).convert("YCbCr")
    path = tmp_path / "source/slide.tif"
    mode.save(path, compression="jpeg", quality=90, tiffinfo={278: 16})
    shard(tmp_path / "source", tmp_path / "out", ShardOptions(tile=128, workers=1))
    shown = np.asarray(Image.open(path).convert("RGB"))
    for name, pixels in tiles_of(tmp_path / "out").items():
        left, top = (int(each[2:]) for each in name.split("@")[1].split(","))
        difference = np.abs(pixels.astype(int) - shown[top : top + 128, left : left + 128])
        assert difference.mean() < 1, name


@pytest.mark.parametrize("mark", [b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1"])
def test_colours_of_jpeg_blocks_are_what_the_tiff_says(tmp_path: Path, mark: bytes) -> None:
    """RGB in blocks that call themselves YCbCr: libtiff, and so Pillow, goes by the TIFF."""
    smooth = Image.fromarray(noise(8, 8, 3)).resize((64, 64))
    encoded = io.BytesIO()
    smooth.save(encoded, "JPEG", quality=95, keep_rgb=True)
    block = encoded.getvalue()[:2] + mark + encoded.getvalue()[2:].replace(b"Adobe", b"other", 1)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, noise(64, 64, 3), photometric="rgb", tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages[0]
        page.tags["Compression"].overwrite(7)  # type: ignore[union-attr]
        page.tags["TileByteCounts"].overwrite(len(block))  # type: ignore[union-attr]
        file.filehandle.seek(page.dataoffsets[0])
        file.filehandle.write(block)
    picture = open_picture(path.read_bytes(), PixelOptions())
    assert isinstance(picture, TiffPicture)
    read = picture.read(Window(0, 0, 64, 64)).astype(int)
    assert np.abs(read - np.asarray(smooth)).mean() < 2
    assert np.abs(read - np.asarray(Image.open(path))).mean() < 1


def test_four_channels_of_jpeg_blocks_are_as_stored(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(noise(8, 8, 3)).convert("CMYK").resize((64, 64)))
    Image.fromarray(smooth, "CMYK").save(tmp_path / "inks.tif", compression="jpeg", quality=95)
    picture = open_picture((tmp_path / "inks.tif").read_bytes(), PixelOptions(channels=4))
    difference = np.abs(picture.read(Window(0, 0, 64, 64)).astype(int) - np.asarray(Image.open(tmp_path / "inks.tif")))
    assert isinstance(picture, TiffPicture)
    assert difference.mean() < 1


def test_planes_of_luma_and_chroma_are_no_channels(tmp_path: Path) -> None:
    path = tmp_path / "planes.tif"
    tifffile.imwrite(path, noise(3, 64, 64), photometric="rgb", planarconfig="separate")
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        tags["Compression"].overwrite(7)
        tags["PhotometricInterpretation"].overwrite(6)
    with pytest.raises(BadImageError, match="YCbCr"):
        open_picture(path.read_bytes(), PixelOptions(channels=3))


@pytest.mark.parametrize(
    ("how", "by_window"),
    [
        ({"rowsperstrip": 1, "compression": "deflate"}, False),  # a tile would take 64 rows of 900 pixels
        ({"rowsperstrip": 1}, True),
        ({"tile": (16, 16), "compression": "deflate"}, True),
        ({"tile": (64, 128), "compression": "deflate"}, True),
        ({"tile": (16, 896), "compression": "deflate"}, False),
    ],
)
def test_tiles_are_read_one_by_one_unless_far_more_is_decoded_for_each(how: dict[str, Any], by_window: bool) -> None:
    picture = open_picture(tiff_bytes(noise(64, 900, 3), photometric="rgb", **how), PixelOptions())
    assert picture.is_read_by_window(TILE) == by_window


def test_volumes_are_refused() -> None:
    volume = tiff_bytes(noise(4, 64, 64), photometric="minisblack", volumetric=True, tile=(4, 64, 64))
    for options in (PixelOptions(), PixelOptions(channels=1), PixelOptions(channels=4)):
        with pytest.raises(BadImageError, match="a volume of 4 pictures"):
            open_picture(volume, options)


def test_what_is_too_large_to_be_decoded_whole_says_how_it_is_read() -> None:
    deep = tiff_bytes(noise(64, 64, 1, dtype="uint16")[..., 0], photometric="minisblack", tile=(32, 32))
    with pytest.raises(BadImageError, match=r"--max-pixels.*TIFF of tiles.*coma shard --channels 1 takes it as it is"):
        open_picture(deep, PixelOptions(max_pixels=100))
    turned = tiff_bytes(noise(64, 64, 3), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(BadImageError, match=r"read piece by piece$"):
        open_picture(turned, PixelOptions(max_pixels=100))


def test_images_of_other_sides_do_not_resume_a_run(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    options = ShardOptions(tile=TILE, channels=1)
    records = []
    for shape in ((64, 128), (128, 64)):  # the same number of bytes
        np.save(tmp_path / "source/scene.npy", np.zeros(shape, np.uint16))
        records.append(prepare_run(tmp_path / "source", tmp_path / "out", options, None).record)
    with locked_run(tmp_path / "out", records[0]):
        pass
    with pytest.raises(UsageError, match="an unfinished run of images that had other sides"):
        inspect_out(tmp_path / "out", records[1])


def test_jpeg_tiles_are_smaller() -> None:
    pixels = noise(256, 256, 3)
    png = encode_tile(pixels, PixelOptions(), TileOptions(tile=256))
    jpeg = encode_tile(pixels, PixelOptions(quality=50), TileOptions(tile=256, tile_format="jpeg"))
    assert (png.facts.format, jpeg.facts.format) == ("png", "jpeg")
    assert len(jpeg.data) < 0.5 * len(png.data)


def test_a_dry_run_counts_tiles_and_writes_nothing(
    rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path
) -> None:
    source, _, out = rgb
    plan = dry_run(source, tmp_path / "out", ShardOptions(tile=TILE))
    assert plan.found == len(read_manifest(out))
    assert plan.spool_bytes > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_images_in_tars_are_cut_where_they_lie(
    rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path], tmp_path: Path
) -> None:
    source, made, _ = rgb
    subprocess.run(["tar", "-cf", str(tmp_path / "all.tar"), "-C", str(source), "a", "b"], check=True)
    shard(tmp_path / "all.tar", tmp_path / "out", ShardOptions(tile=TILE, workers=1))
    tiles = tiles_of(tmp_path / "out")
    for path, image in made.items():
        assert_cut(tiles, path, image, TILE)


def test_the_data_set_says_that_it_is_of_tiles(rgb: tuple[Path, dict[str, npt.NDArray[Any]], Path]) -> None:
    out = rgb[2]
    plan: Any = read_info(out)["coma"]["plan"]  # type: ignore[index]
    assert (plan["tile"], plan["overlap"], plan["tiled_images"]) == (TILE, 0, 7)
    card = (out / "README.md").read_text()
    assert "tiles: of 64 px, cut from 7 images" in card
    assert len(load_manifests(out)) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 20 minutes on a busy machine
def test_a_slide_of_40000_by_30000_pixels_takes_less_than_a_gibibyte_a_worker(tmp_path: Path) -> None:
    random, across, down = np.random.default_rng(0), 157, 118
    ramp = np.add.outer(np.linspace(0, 90, 256), np.linspace(0, 90, 256))[..., None]
    kinds = [(ramp + random.normal(20, 3, (256, 256, 3))).clip(0, 255).astype(np.uint8) for _ in range(8)]
    encoded = [zlib.compress(each.tobytes()) for each in kinds]
    white = zlib.compress(bytes([240]) * (256 * 256 * 3))
    blocks = (
        white if (row // 8 + column // 8) % 3 == 0 else encoded[(row * 7 + column) % 8]
        for row in range(down)
        for column in range(across)
    )
    (tmp_path / "source").mkdir()
    about: dict[str, Any] = {"shape": (30_000, 40_000, 3), "dtype": "uint8", "bigtiff": True, "compression": "deflate"}
    tifffile.imwrite(tmp_path / "source/slide.tif", blocks, photometric="rgb", tile=(256, 256), **about)
    code = (
        "import json, resource, sys; from pathlib import Path; from coma.shards.write.options import ShardOptions; "
        "from coma.shards.write.writer import shard; options = ShardOptions(tile=512, empty_below=2, workers=1, "
        "tile_format='jpeg'); done = shard(Path(sys.argv[1]), Path(sys.argv[2]), options); "
        "print(json.dumps([resource.getrusage(who).ru_maxrss for who in (0, -1)] + [done.found, done.kept]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "source"), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    own, of_worker, entries, kept = json.loads(run.stdout)
    assert entries == 79 * 59
    assert kept + len(set_aside(tmp_path / "out")) == entries
    assert max(own, of_worker) < 2**20  # KiB
    print(f"peak of the worker {of_worker / 1024:.0f} MiB, of the command {own / 1024:.0f} MiB; {kept:,} tiles kept")


def test_what_does_not_go_with_tiles_is_refused_in_a_line(tmp_path: Path) -> None:
    for wrong in (
        {"overlap": 3},
        {"empty_below": 1.0},
        {"tile_format": "jpeg"},
        {"tile": 64, "overlap": 33},
        {"tile": 64, "resize_px": 100},
        {"tile": 64, "check": "header"},
        {"tile": 64, "dedupe": True},
        {"tile": 64, "quality": 80},
        {"tile": 64, "tile_format": "jpeg", "channels": 3},
        {"tile": 8},
    ):
        with pytest.raises(UsageError) as error:
            ShardOptions(**wrong)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    source = tmp_path / "source"
    source.mkdir()
    np.lib.format.open_memmap(source / "large.npy", "w+", np.float32, (4200, 4200, 4))  # type: ignore[no-untyped-call]
    with pytest.raises(
        UsageError, match=r"--tile 8192: a tile of 4 channels of float32 has 282,240,000 bytes.*give 4096"
    ):
        prepare_run(source, tmp_path / "out", ShardOptions(tile=8192, channels=4), None)
    (source / "large.npy").unlink()
    (source / "bad.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(DataError):
        shard(source, tmp_path / "out", ShardOptions(tile=64, channels=3))
