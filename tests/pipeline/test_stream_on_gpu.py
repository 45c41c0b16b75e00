"""The stream to a GPU against the stream to the CPU, and the hand-over of batches between CUDA streams."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from devices import DEVICE, only_on_cuda

from coma.errors import ComaError
from coma.pipeline import MEAN, STD, Batch, CropSizes, Stream

SIZE = {"image_size": 64, "unit_size": 16, "workers": 2}
PLACES = [("cuda", "cpu"), ("cuda", "gpu")] if DEVICE == "cuda" else [("cpu", "cpu")]
"""Where batches end up, and where they are decoded."""
SLOW_CYCLES = 40_000_000
"""Of a GPU's clock: some 20 ms, in which several small batches are made."""


def take(stream: Stream, count: int) -> list[Batch]:
    return [next(stream) for _ in range(count)]


@pytest.fixture(scope="module")
def reference(data: Path) -> list[Batch]:
    """Eight batches on the CPU."""
    with Stream(data, batch_size=12, views=3, seed=5, **SIZE) as stream:
        return take(stream, 8)


def assert_alike(ours: Batch, theirs: Batch, decode: str) -> None:
    """A GPU's JPEG decoder rounds in its own way, by few grey levels, and mixes the inks of the one image in CMYK."""
    difference = (ours.images.cpu() - theirs.images) * 255 * torch.tensor(STD).view(3, 1, 1)
    levels = difference.abs().mean(dim=(1, 2, 3)).sort().values  # [B], of 255; in a shifted window 10
    usual, most = (0.6, 0.6) if decode == "cpu" else (4.0, 16.0)
    assert float(levels[-2]) < usual, levels
    assert float(levels[-1]) < most, levels


@pytest.mark.gpu_too
@pytest.mark.parametrize(("device", "decode"), PLACES)
def test_a_gpu_is_given_what_the_cpu_is_given(data: Path, reference: list[Batch], device: str, decode: str) -> None:
    with Stream(data, batch_size=12, views=3, seed=5, device=device, decode=decode, **SIZE) as stream:
        for before, batch in zip(reference, take(stream, 8), strict=True):
            assert batch.images.device.type == batch.units.device.type == device
            assert batch.images.dtype == torch.float32
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(batch.units.cpu(), before.units)
            assert torch.equal(batch.samples.cpu(), before.samples)
            assert batch.labels is not None
            assert before.labels is not None
            assert torch.equal(batch.labels.cpu(), before.labels)
            assert_alike(batch, before, decode)


@pytest.mark.gpu_too
@pytest.mark.parametrize(("device", "decode"), PLACES)
def test_crops_grow_as_on_the_cpu(data: Path, device: str, decode: str) -> None:
    growing = {"batch_size": 12, "image_size": CropSizes(32, 64, 16, samples=60), "workers": 1}
    with (
        Stream(data, **growing) as expected,
        Stream(data, device=device, decode=decode, **growing) as stream,
    ):
        for before, batch in zip(take(expected, 5), take(stream, 5), strict=True):
            assert batch.images.shape == before.images.shape
            assert_alike(batch, before, decode)


@pytest.mark.gpu_too
@pytest.mark.parametrize(("device", "decode"), PLACES)
def test_a_batch_stays_what_it_was_while_a_slow_consumer_reads_it(data: Path, device: str, decode: str) -> None:
    """The consumer's CUDA stream is far behind: the next batches are decoded, and dropped ones' memory is reused,
    before it has read the one that it was given.
    """
    options = {"batch_size": 12, "seed": 5, "device": device, "decode": decode, **SIZE}
    with Stream(data, **options) as stream:
        expected = []
        for batch in take(stream, 24):
            if device == "cuda":
                torch.cuda.synchronize()
            expected.append((batch.images.sum(dtype=torch.float64).item(), batch.units.sum(dim=1).tolist()))
    consumers = [None, torch.cuda.Stream()] if device == "cuda" else [None]
    for consumer in consumers:  # torch's default stream, and another one
        sums = []
        with torch.cuda.stream(consumer), Stream(data, prefetch=4, **options) as stream:
            for batch in take_each(stream, 24):
                if device == "cuda":
                    torch.cuda._sleep(SLOW_CYCLES)
                sums.append((batch.images.sum(dtype=torch.float64), batch.units.sum(dim=1)))
                del batch  # while the GPU sleeps
            found = [(images.item(), units.tolist()) for images, units in sums]
        assert found == expected


def take_each(stream: Stream, count: int) -> Iterator[Batch]:
    """Batches that nobody but the caller holds."""
    for _ in range(count):
        yield next(stream)


@pytest.mark.gpu_too
@pytest.mark.parametrize(("device", "decode"), PLACES)
def test_evaluation_gives_each_sample_once(data: Path, device: str, decode: str) -> None:
    options = {"training": False, "batch_size": 16, "device": device, "decode": decode, **SIZE}
    with Stream(data, **options) as stream:
        batches = list(stream)
        assert torch.cat([batch.samples for batch in batches]).tolist() == list(range(len(stream.manifest)))
    shown = torch.cat([batch.images for batch in batches]).cpu() * torch.tensor(STD).view(3, 1, 1)
    shown += torch.tensor(MEAN).view(3, 1, 1)
    assert -0.01 < float(shown.min()) < 0.1
    assert 0.9 < float(shown.max()) < 1.01


@pytest.mark.gpu
@only_on_cuda
def test_a_gpu_without_memory_is_not_taken_for_damaged_images(data: Path, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - (24 << 20)), dtype=torch.uint8, device="cuda")
    ledger = tmp_path / "ledger.jsonl"
    options = {"image_size": 2048, "unit_size": 16, "workers": 1, "device": "cuda", "decode": "gpu"}
    try:
        with (
            Stream(data, batch_size=64, ledger=ledger, **options) as stream,  # 3 GB of pixels
            pytest.raises((ComaError, torch.OutOfMemoryError), match=r"(?i)memory|alloc|cuda") as caught,
        ):
            next(stream)
    finally:
        del held
        torch.cuda.empty_cache()
    assert getattr(caught.value, "exit_code", 1) == 1  # 3 is for damaged data
    assert not ledger.exists()
