import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import DEVICE
from drawn import shard_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d as pool

from coma.errors import DataError, UsageError
from coma.pipeline import MEAN, STD, Batch, CropSizes, Stream
from coma.shards.manifest import Manifest, read_manifest

SIZE = {"image_size": 64, "unit_size": 16}
ON = {**SIZE, "device": DEVICE}


def take(stream: Stream, count: int) -> list[Batch]:
    return [next(stream) for _ in range(count)]


def same(ours: Batch, theirs: Batch) -> bool:
    assert ours.labels is not None
    assert theirs.labels is not None
    return all(
        torch.equal(a, b)
        for a, b in [
            (ours.images, theirs.images),
            (ours.units, theirs.units),
            (ours.labels, theirs.labels),
            (ours.samples, theirs.samples),
        ]
    )


def joined(parts: list[Batch]) -> Batch:
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.units for part in parts]),
        parts[0].view_sizes,
        torch.cat(labels),
        torch.cat([part.samples for part in parts]),
    )


def loader_threads() -> list[str]:
    """Not those of downloads, which other tests leave to libraries that cannot be told to stop."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("coma-") and name != "coma-download"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> object:
    yield
    gc.collect()
    assert loader_threads() == []


@pytest.fixture(scope="module")
def reference(data: Path) -> list[Batch]:
    """The first 24 steps of batch size 12, well over two epochs, by one process without interruption."""
    with Stream(data, batch_size=12, views=3, seed=5, workers=1, **ON) as stream:
        return take(stream, 24)


def test_a_batch_is_what_it_says(data: Path, manifest: Manifest, reference: list[Batch]) -> None:
    batch = reference[0]
    assert batch.images.shape == (12, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.units.shape == (12, 16)
    assert batch.view_sizes == (6, 5, 5)
    assert batch.labels is not None
    assert manifest.label is not None
    assert batch.labels.tolist() == manifest.label[batch.samples.numpy()].tolist()
    assert batch.samples.dtype == batch.labels.dtype == torch.int64
    values = batch.images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert -1e-5 <= float(values.min()) < 0.1
    assert 0.9 < float(values.max()) <= 1 + 1e-5


def test_two_epochs_hold_every_sample_twice(manifest: Manifest, reference: list[Batch]) -> None:
    samples = torch.cat([batch.samples for batch in reference])
    total = len(manifest)
    assert 2 * total < len(samples)
    for epoch in range(2):
        assert sorted(samples[epoch * total : (epoch + 1) * total].tolist()) == list(range(total))


@pytest.mark.gpu_too
def test_a_second_run_is_bit_equal(data: Path, reference: list[Batch]) -> None:
    with Stream(str(data), batch_size=12, views=3, seed=5, workers=2, prefetch=4, **ON) as stream:
        assert all(same(batch, before) for batch, before in zip(take(stream, 24), reference, strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_hold_the_same_batches(data: Path, reference: list[Batch], world_size: int) -> None:
    options = {"batch_size": 12, "views": 3, "seed": 5, "workers": 1, "world_size": world_size, **SIZE}
    ranks = [Stream(data, rank=rank, **options) for rank in range(world_size)]
    for before in reference[:9]:
        parts = [next(rank) for rank in ranks]
        assert {len(part.samples) for part in parts} == {12 // world_size}
        assert same(joined(parts), before)
    assert {rank.consumed for rank in ranks} == {9 * 12}
    for rank in ranks:
        rank.close()


@pytest.mark.gpu_too
def test_a_stream_goes_on_where_another_stood(manifest: Manifest, reference: list[Batch]) -> None:
    with Stream(manifest, batch_size=12, views=3, seed=5, **ON) as first:
        take(first, 7)
        state = first.state_dict()
    assert state == {"fingerprint": manifest.fingerprint, "seed": 5, "samples": 84}

    with Stream(manifest, batch_size=12, views=3, seed=5, **ON) as second:
        next(second)  # what was read ahead is thrown away
        second.load_state_dict(state)
        assert second.consumed == 84
        assert all(same(next(second), before) for before in reference[7:12])
    with Stream(manifest, batch_size=12, views=3, seed=5, start_samples=84, **ON) as third:
        assert same(next(third), reference[7])
    if DEVICE == "cuda":  # whose hardware decoder gets a part of each batch, so that others differ by rounding
        return
    with Stream(manifest, batch_size=4, views=3, seed=5, start_samples=84, **ON) as fourth:
        assert same(joined(take(fourth, 3)), reference[7])


def test_a_state_of_other_data_or_another_seed_is_refused(manifest: Manifest) -> None:
    with Stream(manifest, batch_size=2, seed=1, **SIZE) as stream:
        state = stream.state_dict()
        with pytest.raises(DataError, match=rf"{manifest.fingerprint}.*0123456789abcdef"):
            stream.load_state_dict({**state, "fingerprint": "0123456789abcdef"})
        with pytest.raises(UsageError, match=r"seed 2.*seed 1"):
            stream.load_state_dict({**state, "seed": 2})
        assert stream.consumed == 0


def test_seeds_and_epochs_show_other_windows_and_other_views(data: Path, reference: list[Batch]) -> None:
    with Stream(data, batch_size=12, views=3, seed=6, **SIZE) as stream:
        assert not torch.equal(next(stream).samples, reference[0].samples)
    everything = joined(reference)
    first, second = (torch.nonzero(everything.samples == 0).flatten()[:2]).tolist()
    assert not torch.equal(everything.images[first], everything.images[second])
    assert not torch.equal(everything.units[first], everything.units[second])


def test_a_plan_needs_no_reading(manifest: Manifest, reference: list[Batch]) -> None:
    with Stream(manifest, batch_size=12, views=3, seed=5, **SIZE) as stream:
        for number, batch in enumerate(reference, start=1):
            step = stream.plan(number)
            assert step.number == number
            assert step.samples.tolist() == batch.samples.tolist()
        assert loader_threads() == []
        with pytest.raises(IndexError):
            stream.plan(0)


@settings(max_examples=8)
@given(st.integers(1, 5), st.integers(1, 12))
def test_evaluation_gives_each_sample_once(manifest: Manifest, world_size: int, per_rank: int) -> None:
    seen, labels = [], []
    for rank in range(world_size):
        options = {"batch_size": world_size * per_rank, "world_size": world_size, "rank": rank, **SIZE}
        with Stream(manifest, training=False, workers=1, **options) as stream:
            for batch in stream:
                assert 1 <= len(batch.samples) <= per_rank
                assert len(batch.images) == len(batch.units) == len(batch.samples)
                assert batch.labels is not None
                seen += batch.samples.tolist()
                labels += batch.labels.tolist()
            assert list(stream) == []
    assert sorted(seen) == list(range(len(manifest)))
    assert manifest.label is not None
    assert labels == manifest.label[seen].tolist()


def test_evaluation_shows_the_same_pixels_in_any_batch(manifest: Manifest) -> None:
    def images(batch_size: int, seed: int) -> torch.Tensor:
        with Stream(manifest, training=False, batch_size=batch_size, seed=seed, **SIZE) as stream:
            return torch.cat([batch.images for batch in stream])

    assert torch.equal(images(7, 0), images(64, 1))


def test_an_unlabelled_split_has_no_labels(photos: Path, tmp_path: Path) -> None:
    shard_images(photos / "class-1", tmp_path / "plain")
    with Stream(tmp_path / "plain", batch_size=8, **SIZE) as stream:
        assert next(stream).labels is None


def test_crops_grow_and_nothing_else_changes(manifest: Manifest, reference: list[Batch]) -> None:
    """32, 48, 64 px in a run of 24 steps: the samples of the run at 64 px; resumed anywhere, the same bits."""
    growing = {"image_size": CropSizes(32, 64, 16, samples=24 * 12), "views": 3, "seed": 5, "workers": 1}
    with Stream(manifest, batch_size=12, prefetch=4, **growing) as stream:
        batches = take(stream, 24)
    sides = [batch.images.shape[-1] for batch in batches]
    assert sides == [32] * 9 + [48] * 10 + [64] * 5
    views = {32: (2, 1, 1), 48: (3, 3, 3), 64: (6, 5, 5)}
    for side, batch, before in zip(sides, batches, reference, strict=True):
        assert batch.images.shape == (12, 3, side, side)
        assert torch.equal(batch.units.sort(dim=1).values, torch.arange((side // 16) ** 2).expand(12, -1))
        assert batch.view_sizes == views[side]
        assert torch.equal(batch.samples, before.samples)
        assert side < 64 or same(batch, before)
    # The same windows: averaged over units, both show the same.
    small, large = (pool(b.images, b.images.shape[-1] // 8) for b in (batches[0], reference[0]))
    assert (small - large).abs().mean() < 0.1 < (small - large.flip(0)).abs().mean()
    for done in (8, 18):  # what was read ahead crosses the change
        with Stream(manifest, batch_size=12, **growing) as first:
            take(first, done)
            state = first.state_dict()
        with Stream(manifest, batch_size=12, **growing) as second:
            second.load_state_dict(state)
            assert all(same(ours, whole) for ours, whole in zip(take(second, 3), batches[done:], strict=False))
        ranks = [
            Stream(manifest, batch_size=12, start_samples=12 * done, rank=rank, world_size=2, **growing)
            for rank in range(2)
        ]
        for whole in batches[done : done + 2]:
            assert same(joined([next(rank) for rank in ranks]), whole)
        for rank in ranks:
            rank.close()


def test_batches_larger_than_the_data_set(manifest: Manifest) -> None:
    total = len(manifest)
    with Stream(manifest, batch_size=2 * total + 3, **SIZE) as stream:
        samples = next(stream).samples
    assert sorted(samples[:total].tolist()) == sorted(samples[total : 2 * total].tolist()) == list(range(total))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 10, "world_size": 4}, "10.*4 processes"),
        ({"image_size": 100}, "100.*16 pixels"),
        ({"views": 17}, "17 views of 16"),
        ({"views": 5, "image_size": CropSizes(32, 64, 16, 100)}, "5 views of 4"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"crop_scale": (0.5, 1.5)}, "1.5"),
        ({"start_samples": -1}, "-1"),
        ({"workers": 0}, "0 workers"),
        ({"decode": "fpga"}, "fpga.*auto, cpu or gpu"),
        ({"decode": "gpu"}, "go to a CPU"),
    ],
)
def test_impossible_options_are_refused(manifest: Manifest, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Stream(manifest, **{"batch_size": 8, **SIZE, **wrong})
    assert "\n" not in str(caught.value)


def test_missing_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        Stream(tmp_path / "nowhere", batch_size=8)


# Threads


def test_batches_are_prepared_ahead(manifest: Manifest) -> None:
    with Stream(manifest, batch_size=8, prefetch=3, **SIZE) as stream:
        next(stream)
        deadline = time.monotonic() + 20
        while len(stream._loader._ready._items) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(stream._loader._ready._items) == 3  # and no more than that


@pytest.mark.gpu_too
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_ends_the_threads_at_once(manifest: Manifest, taken: int) -> None:
    stream = Stream(manifest, batch_size=8, **ON)
    take(stream, taken)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 2
    assert loader_threads() == []
    stream.close()
    with pytest.raises(UsageError, match="closed"):
        next(stream)


def test_a_consumer_that_fails_leaves_no_threads(manifest: Manifest) -> None:
    def train() -> None:
        with Stream(manifest, batch_size=8, **SIZE) as stream:
            for batch in stream:
                raise KeyError(len(batch.samples))

    with pytest.raises(KeyError):
        train()
    assert loader_threads() == []


@pytest.mark.gpu_too
def test_a_forgotten_stream_ends_its_threads(manifest: Manifest) -> None:
    stream = Stream(manifest, batch_size=8, **ON)
    batch = next(stream)
    alive = weakref.ref(stream)
    del stream
    gc.collect()
    assert alive() is None
    assert loader_threads() == []
    assert bool(batch.images.isfinite().all())


def test_closing_from_another_thread_wakes_a_waiting_consumer(manifest: Manifest) -> None:
    stream = Stream(manifest, batch_size=8, **SIZE)
    next(stream)
    loader = stream._loader
    assert loader is not None
    outcome: list[object] = []
    consumer = threading.Thread(target=lambda: outcome.extend(iter(loader.get, None)))
    consumer.start()
    time.sleep(0.2)
    stream.close()
    consumer.join(10)
    assert not consumer.is_alive()


@pytest.mark.gpu_too
@pytest.mark.parametrize(
    "ending", ["raise SystemExit(7)", pytest.param("raise KeyError('mine')", marks=pytest.mark.slow)]
)
def test_the_interpreter_exits_with_a_stream_open(data: Path, ending: str) -> None:
    code = (
        "from coma.pipeline import Stream\n"
        f"s = Stream({str(data)!r}, batch_size=8, image_size=64, unit_size=16, prefetch=4, device={DEVICE!r})\n"
        "next(s)\n"
        f"{ending}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    if "KeyError" in ending:
        assert done.returncode == 1
        assert done.stderr.count("Traceback") == 1
    else:
        assert done.returncode == 7
        assert done.stderr == ""


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, coma.pipeline; print(sorted({'torch', 'nvidia.dali', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_manifest_read_before_serves_as_well(data: Path, reference: list[Batch]) -> None:
    with Stream(read_manifest(data), batch_size=12, views=3, seed=5, **SIZE) as stream:
        assert same(next(stream), reference[0])
    assert np.array_equal(read_manifest(data / "train").offset, read_manifest(data).offset)
