"""The stream of samples of other than 8-bit RGB: the very pixels, and all that holds for RGB."""

import copy
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from bands import KINDS, band_set, read_sample
from numpy.typing import NDArray
from test_faults import alter, flip_bytes
from torch.nn.functional import interpolate

from coma.errors import DataError, UsageError
from coma.pipeline import Preprocessing, Stream
from coma.pipeline.arrays import ArrayHeaderCheck
from coma.pipeline.crops import Crops, random_resized_crops
from coma.pipeline.preprocessing import of_data
from coma.shards.images.array_files.npy import encode
from coma.shards.images.pixel_counts import PixelCounts
from coma.shards.manifest import Manifest, read_manifest

SIDE, OPTIONS = 32, {"unit_size": 16, "workers": 2, "seed": 4}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set of each kind."""
    return {kind: band_set(tmp_path_factory.mktemp(kind), kind, 18, shard_bytes=65536) for kind in KINDS}


@pytest.fixture
def damaged(sets: dict[str, Path], tmp_path: Path) -> Manifest:
    """A copy of the 13 bands, to be damaged."""
    return read_manifest(Path(shutil.copytree(sets["tiff"], tmp_path / "data")))


def originals(manifest: Manifest) -> list[NDArray[Any]]:
    """All samples in the manifest's order, read by other libraries."""
    images = manifest.folder.parent.parent / "images"
    return [read_sample(images / source) for source in manifest.sources(range(len(manifest)))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_that_needs_no_resizing_has_the_very_values(sets: dict[str, Path], kind: str) -> None:
    manifest = read_manifest(sets[kind])
    samples, pixels = originals(manifest), manifest.pixels
    assert pixels is not None
    everything = np.concatenate([each.reshape(-1, pixels.channels) for each in samples])
    mean, std = everything.mean(axis=0, dtype=np.float64), everything.std(axis=0, dtype=np.float64)
    chance = np.random.default_rng(0)
    places = np.array([[chance.integers(0, side - SIDE + 1) for side in each.shape[:2]] for each in samples], np.int32)
    flips = chance.integers(0, 2, len(samples)).astype(np.int32)
    windows = Crops(places, np.full_like(places, SIDE), flips)
    with Stream(manifest, batch_size=7, image_size=SIDE, training=False, windows=windows, **OPTIONS) as stream:
        images = torch.cat([batch.images for batch in stream])
    assert images.shape == (18, pixels.channels, SIDE, SIDE)
    for image, sample, (top, left), flip in zip(images, samples, places, flips, strict=True):
        window = sample[top : top + SIDE, left : left + SIDE]
        shown = image.permute(1, 2, 0).numpy()[:, :: -1 if flip else 1].astype(np.float64) * std + mean
        if pixels.dtype == "float32":
            assert np.abs(shown - window).max() < 1e-6
        else:
            assert (np.rint(shown).astype(window.dtype) == window).all()


@pytest.mark.parametrize("kind", KINDS)
def test_training_crops_are_resized_in_float32_as_torch_does(sets: dict[str, Path], kind: str) -> None:
    manifest = read_manifest(sets[kind])
    samples, like = originals(manifest), of_data(manifest.pixels)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (like.mean, like.std))
    with Stream(manifest, batch_size=6, image_size=SIDE, **OPTIONS) as stream:
        batch, plan = next(stream), stream.plan(1)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    shown = plan.samples
    crops = random_resized_crops(shown, plan.epochs, manifest.width[shown], manifest.height[shown], seed=4)
    assert crops.flip.any()
    for place, sample in enumerate(shown):
        (top, left), (height, width) = crops.start[place], crops.shape[place]
        window = samples[sample][top : top + height, left : left + width].astype(np.float32)
        image = torch.from_numpy(window).permute(2, 0, 1)[None]
        expected = (interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)[0] - mean) / std
        expected = expected.flip(2) if crops.flip[place] else expected
        assert (batch.images[place] - expected).abs().max() < 2e-3


def test_ranks_resuming_and_copies_give_the_same_batches(sets: dict[str, Path]) -> None:
    def stream(**more: Any) -> Stream:
        return Stream(sets["tiff"], batch_size=6, image_size=SIDE, **{**OPTIONS, **more})

    with stream() as one:
        batches = [next(one) for _ in range(3)]
        state = one.state_dict()
        after = next(one)
    with stream(rank=0, world_size=2, workers=1) as left, stream(rank=1, world_size=2) as right:
        for batch in batches:
            parts = next(left), next(right)
            assert torch.equal(torch.cat([part.samples for part in parts]), batch.samples)
            assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    with stream() as resumed:
        resumed.load_state_dict(state)
        pickled, copied = pickle.loads(pickle.dumps(resumed)), copy.copy(resumed)
        for each in (resumed, pickled, copied):
            with each:
                assert torch.equal(next(each).images, after.images)


def test_sides_as_long_as_there_are_channels_are_no_fault() -> None:
    """The order of axes is asked of a source's files alone: samples of shards are [H, W, C]."""
    data = np.frombuffer(encode(np.zeros((3, 3, 3), np.float32)), np.uint8)
    pixels = PixelCounts(3, "float32")
    pixels.add(np.zeros((3, 3, 3), np.float32))
    three = np.array([3])
    assert ArrayHeaderCheck(pixels.coding()).faults([data], three, three) == {}
    assert "not the manifest's 3x4" in ArrayHeaderCheck(pixels.coding()).faults([data], three, three + 1)[0]


def test_a_damaged_sample_is_replaced_and_written_down(damaged: Manifest, tmp_path: Path) -> None:
    flip_bytes(damaged, 3)
    file = tmp_path / "other.npy"
    np.save(file, np.zeros((damaged.height[5], damaged.width[5], 13), np.uint8))
    manifest = _replaced(damaged, 5, file.read_bytes())
    ledger = tmp_path / "ledger.jsonl"
    with Stream(manifest, batch_size=18, image_size=SIDE, ledger=ledger, **OPTIONS) as stream:
        first = next(stream)
    lines = {line["key"]: line for line in map(json.loads, ledger.read_text().splitlines())}
    assert {int(key) for key in lines} == {3, 5}
    reasons = {int(key): line["reason"] for key, line in lines.items()}
    assert "is not the manifest's" in reasons[3]
    assert "it has 13 channels of uint8, not the manifest's 13 channels of uint16" in reasons[5]
    assert bool(first.images.isfinite().all())
    with Stream(manifest, batch_size=18, image_size=SIDE, mark_damaged=True, training=False, **OPTIONS) as stream:
        marked = next(stream)
    assert set(marked.damaged) == {3, 5}
    assert marked.images.shape == (18, 13, SIDE, SIDE)
    with (
        Stream(manifest, batch_size=18, image_size=SIDE, fault_budget=1, **OPTIONS) as stream,
        pytest.raises(DataError, match="more than allowed"),
    ):
        next(stream)


def test_values_that_only_decoding_finds_damaged_cost_one_sample(damaged: Manifest, tmp_path: Path) -> None:
    path = damaged.folder / damaged.shards[int(damaged.shard_id[4])]
    raw = bytearray(path.read_bytes())
    start, size = int(damaged.offset[4]), int(damaged.size[4])
    assert damaged.sources([4])[0].endswith(".tiff")
    raw[start + 200 : start + size - 2000 : 3] = bytes(len(range(start + 200, start + size - 2000, 3)))
    path.write_bytes(raw)
    manifest = alter(damaged, "xxh3_64", 4, xxhash.xxh3_64_intdigest(bytes(raw[start : start + size])))
    with Stream(manifest, batch_size=18, image_size=SIDE, mark_damaged=True, training=False, **OPTIONS) as stream:
        marked = next(stream)
    with Stream(damaged, batch_size=18, image_size=SIDE, mark_damaged=True, training=False, **OPTIONS) as stream:
        others = [sample for sample in range(18) if sample != 4]
        assert torch.equal(next(stream).images[others], marked.images[others])
    assert set(marked.damaged) <= {4}


def _replaced(manifest: Manifest, sample: int, data: bytes) -> Manifest:
    """Put other bytes into the place of a sample's, which are at most as many."""
    path = manifest.folder / manifest.shards[int(manifest.shard_id[sample])]
    raw, start = bytearray(path.read_bytes()), int(manifest.offset[sample])
    data = data[: int(manifest.size[sample])]
    data = data.ljust(int(manifest.size[sample]), b"\0")
    raw[start : start + len(data)] = data
    path.write_bytes(raw)
    return alter(manifest, "xxh3_64", sample, xxhash.xxh3_64_intdigest(data))


def test_values_are_clipped_where_asked(sets: dict[str, Path]) -> None:
    manifest = read_manifest(sets["tiff"])
    like = of_data(manifest.pixels, clip_percentile=10)
    values = np.concatenate([each.reshape(-1, 13) for each in originals(manifest)]).astype(np.float64)
    low, high = np.percentile(values, [10, 90], axis=0)
    assert np.abs(np.array(like.low) - low).max() < 3
    clipped = values.clip(low, high)
    assert np.abs(np.array(like.mean) / clipped.mean(axis=0) - 1).max() < 1e-3
    assert np.abs(np.array(like.std) / clipped.std(axis=0) - 1).max() < 1e-2
    with Stream(manifest, batch_size=18, image_size=SIDE, preprocessing=like, **OPTIONS) as stream:
        images = next(stream).images
    limits = [(np.array(each) - np.array(like.mean)) / np.array(like.std) for each in (like.low, like.high)]
    assert np.abs(images.amin(dim=(0, 2, 3)).numpy() - limits[0]).max() < 1e-3
    assert np.abs(images.amax(dim=(0, 2, 3)).numpy() - limits[1]).max() < 1e-3


def test_what_does_not_fit_is_refused_in_one_line(sets: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"takes images of 3 channels of uint8, and those of .* 13 channels of uint16"):
        Stream(sets["tiff"], batch_size=2, image_size=SIDE, preprocessing=Preprocessing(), **OPTIONS)
    with pytest.raises(UsageError, match="decoded on the CPU"):
        Stream(sets["tiff"], batch_size=2, image_size=SIDE, device="cuda:0", decode="gpu", **OPTIONS)


def test_docs_stream_md_runs_as_it_is_written(sets: dict[str, Path]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "stream.md").read_text()
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", text, re.S) if "of_data(" in each)
    names: dict[str, Any] = {"Stream": Stream}
    exec(code.replace("scenes-shards", str(sets["tiff"])).replace("batch_size=256", "batch_size=4"), names)
    with names["stream"] as stream:
        assert next(stream).images.shape == (4, 13, 224, 224)
