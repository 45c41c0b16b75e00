"""Masks as a reader gives them: upright, in class ids, and cut as the stream cuts their images."""

from pathlib import Path

import numpy as np
import pytest
from drawn import sharded
from masked import as_png, draw_ids, draw_pairs, picture_of
from PIL import Image

from coma.errors import DataError
from coma.evaluation.sample import few_of
from coma.pictures.images import to_pixels
from coma.pipeline import Stream
from coma.pipeline.masks import MaskReader, nearest
from coma.shards.manifest import Manifest, read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

COLOURS = np.random.default_rng(7).integers(30, 220, (256, 3))  # as `picture_of` has them


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, np.ndarray]]:
    """12 images, two of them turned by EXIF, with masks whose values start at 1."""
    folder = tmp_path_factory.mktemp("masked")
    values = (np.arange(256) + 1).astype(np.uint8)
    drawn = draw_pairs(folder / "source", 10, size=(150, 110), values=values)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (10, 11):
        ids = draw_ids(number, 110, 150)  # as it is shown
        stored = np.ascontiguousarray(np.rot90(ids))
        (folder / f"source/images/{number}.jpg").write_bytes(picture_of(stored, number, exif=exif))
        (folder / f"source/masks/{number}.png").write_bytes(as_png(values[ids]))
        drawn[f"images/{number}.jpg"] = ids
    shard(folder / "source", folder / "out", ShardOptions(mask_ignore=0, mask_classes="4", workers=1))
    return read_manifest(folder / "out"), drawn


def test_class_ids_in_the_order_asked_for(masked) -> None:
    manifest, drawn = masked
    order = [5, 0, 11, 5]
    with MaskReader(manifest) as reader:
        masks = reader.read(order)
    for mask, source in zip(masks, manifest.sources(order), strict=True):
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, drawn[source])
    assert manifest.mask_classes == ("0", "1", "2", "3")


def test_cut_as_the_stream_cuts(masked) -> None:
    manifest, _ = masked
    with (
        Stream(manifest.folder.parent, batch_size=12, image_size=96, training=False) as stream,
        MaskReader(manifest) as reader,
    ):
        batch = next(iter(stream))
        masks = reader.read_center(batch.samples.tolist(), 96)
    pixels = to_pixels(batch.images).astype(np.int64)  # [n, S, S, 3]
    distance = np.abs(pixels[..., None, :] - COLOURS[[0, 1, 2, 3, 255]]).sum(-1)
    shown = np.array([0, 1, 2, 3, 255])[distance.argmin(-1)]
    agreement = (shown == masks).mean(axis=(1, 2))
    assert agreement.min() > 0.9, agreement  # the colours of edges are mixed
    for moved in ((0, 2), (0, -2), (2, 0), (-2, 0)):
        elsewhere = (shown == np.roll(masks, moved, axis=(1, 2))).mean(axis=(1, 2))
        assert (agreement > elsewhere + 0.02).all()


def test_nearest_takes_centres() -> None:
    assert nearest(4, 2).tolist() == [1, 3]
    assert nearest(2, 4).tolist() == [0, 0, 1, 1]
    assert nearest(5, 5).tolist() == list(range(5))
    assert nearest(9, 3).tolist() == [1, 4, 7]


def test_a_part_of_a_split(masked) -> None:
    manifest, drawn = masked
    few = few_of(manifest, 5)
    masks = MaskReader(few).read(range(5))
    assert all(np.array_equal(mask, drawn[name]) for mask, name in zip(masks, few.sources(range(5)), strict=True))


def test_a_damaged_mask_is_named(masked, tmp_path: Path) -> None:
    manifest, _ = masked
    tar = manifest.folder / manifest.shards[0]
    whole = tar.read_bytes()
    try:
        spoilt = bytearray(whole)
        spoilt[manifest.mask_offset[3] + 40] ^= 1
        tar.write_bytes(spoilt)
        with pytest.raises(DataError, match=rf"the mask of sample {manifest.keys([3])[0]} in .* is damaged: hash"):
            MaskReader(manifest).read([3])
    finally:
        tar.write_bytes(whole)


def test_a_split_without_masks(tmp_path: Path) -> None:
    manifest = read_manifest(sharded(tmp_path, 4))
    assert not manifest.has_masks
    assert manifest.mask_classes == ()
    with pytest.raises(DataError, match="has no masks; shard images with masks beside them"):
        MaskReader(manifest)


def test_masks_of_a_remote_split(masked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    manifest, drawn = masked
    store = fsspec.filesystem("memory")
    store.put(str(manifest.folder.parent), "/masked", recursive=True)
    monkeypatch.setenv("COMA_CACHE", str(tmp_path))
    remote = read_manifest("memory://masked")  # type: ignore[arg-type]
    with MaskReader(remote) as reader:
        masks = reader.read(range(12))
    assert all(np.array_equal(mask, drawn[name]) for mask, name in zip(masks, remote.sources(range(12)), strict=True))


def test_large_manifests_map_the_columns_of_masks(masked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coma.shards.manifest import column_files

    manifest, drawn = masked
    monkeypatch.setattr(column_files, "LARGE_BYTES", 1)
    monkeypatch.setenv("COMA_CACHE", str(tmp_path))
    for _ in range(2):  # built, then mapped
        mapped = read_manifest(manifest.folder)
        assert mapped.fingerprint == manifest.fingerprint
        assert mapped.mask_coding == manifest.mask_coding
        masks = MaskReader(mapped).read(range(12))
        sources = mapped.sources(range(12))
        assert all(np.array_equal(mask, drawn[name]) for mask, name in zip(masks, sources, strict=True))
    assert list(tmp_path.rglob("mask_offset.npy"))
