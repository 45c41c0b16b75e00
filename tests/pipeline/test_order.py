import tracemalloc
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from coma.pipeline.crops import random_resized_crops
from coma.pipeline.order import Planner, SampleOrder, rank_slice
from coma.pipeline.views import partition_units

LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any)
SEEDS = st.integers(0, 2**32)
WINDOWS = st.one_of(st.none(), st.integers(1, 5))


def sample_order(shard_lengths: list[int], seed: int, epoch: int) -> np.ndarray:
    """The order of one whole epoch."""
    order = SampleOrder(shard_lengths, seed)
    return order.samples(epoch, 0, order.samples_per_epoch)


@given(LENGTHS, SEEDS, st.integers(0, 1000), WINDOWS)
def test_every_epoch_is_a_permutation(lengths: list[int], seed: int, epoch: int, window: int | None) -> None:
    order = SampleOrder(lengths, seed, window_shards=window)
    samples = order.samples(epoch, 0, order.samples_per_epoch)
    assert samples.dtype == np.int64
    np.testing.assert_array_equal(np.sort(samples), np.arange(sum(lengths)))


@given(LENGTHS, SEEDS, WINDOWS, st.data())
def test_any_range_is_the_same_as_a_cut_of_the_whole(
    lengths: list[int], seed: int, window: int | None, data: st.DataObject
) -> None:
    total = sum(lengths)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    whole = SampleOrder(lengths, seed, window_shards=window).samples(2, 0, total)
    part = SampleOrder(lengths, seed, window_shards=window).samples(2, start, stop)
    np.testing.assert_array_equal(part, whole[start:stop])


@given(LENGTHS, SEEDS, st.integers(1, 8), st.integers(1, 6), st.integers(0, 60))
def test_batches_go_on_across_epochs_and_resume_anywhere(
    lengths: list[int], seed: int, world: int, per_rank: int, skipped: int
) -> None:
    batch_size, total = world * per_rank, sum(lengths)
    steps = 2 * total // batch_size + 2
    order = SampleOrder(lengths, seed)
    samples, epochs = order.global_batch(0, steps * batch_size)

    np.testing.assert_array_equal(epochs, np.arange(steps * batch_size) // total)
    for epoch in range(steps * batch_size // total):
        np.testing.assert_array_equal(np.sort(samples[epochs == epoch]), np.arange(total))

    # Resumed at any sample with any batch size, by an order that knows nothing of what came before.
    resumed, _ = SampleOrder(lengths, seed).global_batch(skipped, batch_size)
    np.testing.assert_array_equal(resumed, order.global_batch(0, skipped + batch_size)[0][skipped:])


@given(LENGTHS, SEEDS, st.integers(1, 16), st.integers(1, 5), st.integers(1, 6), st.integers(0, 40))
def test_any_number_of_ranks_shows_the_same_batch(
    lengths: list[int], seed: int, world: int, per_rank: int, views: int, number: int
) -> None:
    """Samples, windows, flips and masks of the ranks' parts, each made by its own order, laid end to end."""
    batch_size = world * per_rank

    def shown(rank: int, world_size: int) -> list[np.ndarray]:
        step = Planner(SampleOrder(lengths, seed), sum(lengths), batch_size).at(number * batch_size)
        assert step is not None
        part = rank_slice(batch_size, rank, world_size)
        samples, epochs = step.samples[part], step.epochs[part]
        width, height = 50 + samples * 7 % 90, 50 + samples * 11 % 90  # as a manifest knows them by sample
        crops = random_resized_crops(samples, epochs, width, height, seed=seed)
        keys = torch.from_numpy(samples), torch.from_numpy(epochs)
        units = partition_units(*keys, seed=seed, units=views * 3).numpy()
        return [samples, epochs, crops.start, crops.shape, crops.flip, units]

    ranks = [shown(rank, world) for rank in range(world)]
    for together, parts in zip(shown(0, 1), zip(*ranks, strict=True), strict=True):
        np.testing.assert_array_equal(together, np.concatenate(parts))


@given(LENGTHS, SEEDS, st.lists(st.tuples(st.integers(1, 16), st.integers(1, 4)), min_size=1, max_size=6))
def test_stops_and_other_numbers_of_ranks_leave_no_gap(
    lengths: list[int], seed: int, runs: list[tuple[int, int]]
) -> None:
    """A state is how many samples were consumed: each run goes on there, knowing nothing else."""
    consumed, seen = 0, []
    for world, per_rank in runs:
        batch_size = world * per_rank
        planner = Planner(SampleOrder(lengths, seed), sum(lengths), batch_size)
        for _ in range(2):
            step = planner.at(consumed)
            assert step is not None
            seen += [step.samples[rank_slice(batch_size, rank, world)] for rank in range(world)]
            consumed = step.stop_sample
    whole, _ = SampleOrder(lengths, seed).global_batch(0, consumed)
    np.testing.assert_array_equal(np.concatenate(seen), whole)


@given(st.integers(1, 16), st.integers(1, 50))
def test_ranks_partition_the_global_batch(world: int, batch_size: int) -> None:
    batch = np.arange(batch_size)
    parts = [batch[rank_slice(batch_size, rank, world)] for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_and_seeds_differ() -> None:
    orders = [sample_order([50, 50], seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({order.tobytes() for order in orders}) == 9


@pytest.mark.parametrize("lengths", [[1000], [10] * 100, [2] * 40])
def test_a_small_data_set_is_shuffled_whole(lengths: list[int]) -> None:
    """Wherever a sample stands in the manifest, it comes anywhere in the epoch: no rank correlation."""
    for seed in range(3):
        order = sample_order(lengths, seed, 0)
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 4 / np.sqrt(len(order))


def test_windows_bound_the_shards_open_at_a_time() -> None:
    lengths, window = np.full(40, 25), 8
    shard_of = np.repeat(np.arange(40), 25)
    visited = shard_of[SampleOrder(lengths, 5, window_shards=window).samples(0, 0, 1000)]
    seen = [set(visited[start : start + window * 25]) for start in range(0, 1000, window * 25)]
    assert [len(shards) for shards in seen] == [window] * 5
    assert len(set.union(*seen)) == 40


def test_the_default_window_of_a_large_data_set() -> None:
    """ImageNet's shape: windows of over 2^15 samples out of a few shards."""
    order = SampleOrder(np.full(557, 2300), 0)
    shards = order.samples(3, 640_000, 640_256) // 2300
    assert 8 <= len(np.unique(shards)) <= 64


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(
    ("count", "length"),
    [(1_280_000, 2300), (1_280_000, 1_280_000), (10**8, 2300), (10**8, 10**8), (10**8, 100)],
)
def test_a_seek_builds_the_order_of_the_shards_and_no_more(count: int, length: int, mixed: bool) -> None:
    """Memory by the batch and by the shard, never by the sample."""
    lengths = np.full(count // length, length)
    tracemalloc.start()
    try:
        order = SampleOrder(lengths, 0, mixed=mixed)
        for epoch in range(4):
            samples, _ = order.global_batch(epoch * order.samples_per_epoch + count // 3, 4096)
            assert len(np.unique(samples)) == 4096
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * 2**20 + 100 * len(lengths)


P = 1e-3  # that chance alone is allowed; the seeds are fixed


@pytest.mark.parametrize("count", [2, 3, 5, 6, 9, 13, 16, 17, 20])
def test_small_permutations_are_uniform(count: int) -> None:
    """A window may be as small: any place for any sample, any two places for any two."""
    drawn = np.stack([sample_order([count], 0, epoch) for epoch in range(1000)])
    at = [np.bincount(places, minlength=count) for places in drawn.T]
    assert chi2.sf(chisquare(at, axis=None).statistic, (count - 1) ** 2) > P
    pairs = list(combinations(range(count), 2))
    apart = ~np.eye(count, dtype=bool).ravel()
    two = [np.bincount(drawn[:, a] * count + drawn[:, b], minlength=count**2)[apart] for a, b in pairs]
    assert min(chisquare(seen).pvalue for seen in two) > P / len(pairs)


def test_every_permutation_of_a_few_comes_up() -> None:
    drawn = np.stack([sample_order([5], 0, epoch) for epoch in range(2400)])
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 120
    assert chisquare(counts).pvalue > P


def test_numbers_are_fixed() -> None:
    """The order is part of the checkpoint format: a change here breaks every run that resumes."""
    np.testing.assert_array_equal(sample_order([5, 0, 7, 3], 1, 0), FIRST)
    order = SampleOrder([5, 0, 7, 3], 1, window_shards=2)
    np.testing.assert_array_equal(order.samples(1, 0, 15), IN_TWO_WINDOWS)
    far = SampleOrder(np.full(40_000, 2500), 1).samples(9, 70_000_000, 70_000_004)
    np.testing.assert_array_equal(far, FAR)


FIRST = [13, 10, 2, 9, 4, 3, 1, 5, 11, 7, 12, 0, 8, 6, 14]
IN_TWO_WINDOWS = [13, 14, 12, 6, 2, 5, 8, 3, 7, 9, 0, 4, 10, 11, 1]
FAR = [35444279, 67962754, 14740445, 67964243]


def test_planner_makes_one_pass_or_goes_on_for_ever() -> None:
    one_pass = Planner(None, 10, 4)
    steps = [one_pass.at(start) for start in (0, 4, 8, 12)]
    assert steps[3] is None
    assert [step.number for step in steps if step] == [1, 2, 3]
    np.testing.assert_array_equal(np.concatenate([step.samples for step in steps if step]), np.arange(10))
    endless = Planner(SampleOrder([10], 0), 10, 4).at(4000)
    assert endless is not None
    assert (endless.number, endless.stop_sample, set(endless.epochs)) == (1001, 4004, {400})


@settings(max_examples=20)
@given(st.integers(-5, 15), st.integers(-5, 15))
def test_a_range_outside_the_epoch_is_refused(start: int, stop: int) -> None:
    order = SampleOrder([4, 6], 0)
    if 0 <= start <= stop <= 10:
        assert len(order.samples(0, start, stop)) == stop - start
    else:
        with pytest.raises(IndexError):
            order.samples(0, start, stop)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        SampleOrder([0, 0], 0)
