import numpy as np
import pytest
import torch
from devices import DEVICE

from coma.pipeline import views
from coma.pipeline.views import partition_units, view_sizes


def test_sizes_of_the_usual_views() -> None:
    assert view_sizes(49, 2) == (25, 24)
    assert view_sizes(49, 4) == (13, 12, 12, 12)
    assert view_sizes(4, 1) == (4,)
    for impossible in (0, 5):
        with pytest.raises(ValueError, match="at least one unit"):
            view_sizes(4, impossible)


def test_views_partition_the_image_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        units = int(rng.integers(1, 200))
        count = int(rng.integers(1, units + 1))
        batch = int(rng.integers(1, 5))
        samples = torch.from_numpy(rng.integers(0, 2**40, batch))
        epochs = torch.from_numpy(rng.integers(0, 1000, batch))
        laid = partition_units(samples, epochs, seed=int(rng.integers(0, 2**63)), units=units)
        sizes = view_sizes(units, count)

        assert laid.dtype == torch.int64
        assert laid.shape == (batch, units)
        assert len(sizes) == count
        assert sum(sizes) == units
        assert max(sizes) - min(sizes) <= 1
        for row in laid:
            seen = [set(part.tolist()) for part in row.split(list(sizes))]
            assert set.union(*seen) == set(range(units))  # sizes add up to `units`, so they are disjoint as well


def test_an_images_views_do_not_depend_on_its_batch() -> None:
    samples, epochs = torch.arange(20), torch.arange(20) % 3
    together = partition_units(samples, epochs, seed=9, units=49)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        partition_units(samples[shuffled], epochs[shuffled], seed=9, units=49), together[shuffled]
    )
    torch.testing.assert_close(partition_units(samples[4:5], epochs[4:5], seed=9, units=49), together[4:5])


def test_every_unit_is_as_likely_in_every_place() -> None:
    laid = partition_units(torch.arange(4000), torch.zeros(4000, dtype=torch.int64), seed=0, units=16)
    in_first_view = (laid[:, :8, None] == torch.arange(16)).any(1).double()  # [4000, U]
    assert (in_first_view.mean(0) - 0.5).abs().max() < 0.04  # 5 standard errors
    pairs = torch.corrcoef(in_first_view.T)[~torch.eye(16, dtype=torch.bool)]
    assert (pairs + 1 / 15).abs().max() < 0.08  # drawing 8 of 16 without replacement correlates by -1/15


def test_seed_epoch_and_sample_all_count() -> None:
    def one(sample: int, epoch: int, seed: int) -> tuple[int, ...]:
        return tuple(partition_units(torch.tensor([sample]), torch.tensor([epoch]), seed=seed, units=49)[0].tolist())

    assert len({one(0, 0, 0), one(1, 0, 0), one(0, 1, 0), one(0, 0, 1)}) == 4
    assert views.partition_units is partition_units


@pytest.mark.gpu
def test_the_gpu_lays_the_same_views() -> None:
    samples, epochs = torch.arange(64) * 2**35, torch.arange(64) % 5
    for units in (1, 49, 196, 3136):
        here = partition_units(samples, epochs, seed=2**63 - 1, units=units)
        there = partition_units(samples.to(DEVICE), epochs.to(DEVICE), seed=2**63 - 1, units=units)
        assert there.device.type == DEVICE
        assert torch.equal(there.cpu(), here)
