import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coma.pipeline.crops import random_resized_crops
from coma.pipeline.order import Planner, SampleOrder, rank_slice, sample_order
from coma.pipeline.views import partition_units

LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any)
SEEDS = st.integers(0, 2**32)
WINDOWS = st.one_of(st.none(), st.integers(1, 5))


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
    """ImageNet's shape: windows of over 2^15 samples out of a few shards; a seek builds one of them only."""
    order = SampleOrder(np.full(557, 2300), 0)
    shards = order.samples(3, 640_000, 640_256) // 2300
    assert 8 <= len(np.unique(shards)) <= 64
    assert len(order._windows) == 1


@pytest.mark.parametrize(("count", "length"), [(1_280_000, 2300), (10**8, 2300), (10**8, 100)])
def test_a_seek_into_many_samples_takes_little_memory(count: int, length: int) -> None:
    """What it builds is a window, and numbers a shard: never numbers a sample."""
    lengths = np.full(count // length, length)
    tracemalloc.start()
    try:
        order = SampleOrder(lengths, 0)
        for epoch in range(6):
            order.global_batch(epoch * order.samples_per_epoch + count // 3, 4096)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * 2**20 + 150 * len(lengths)


def test_numbers_are_fixed() -> None:
    """The order is part of the checkpoint format: a change here breaks every run that resumes."""
    np.testing.assert_array_equal(sample_order([5, 0, 7, 3], 1, 0), FIRST)


FIRST = [7, 12, 13, 8, 11, 2, 14, 4, 1, 9, 3, 5, 0, 6, 10]


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
