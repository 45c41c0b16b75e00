"""Whether batches are random draws: the mix of their classes, where the source was sorted by class.

Legend: N samples, C classes, T batches of B samples.
"""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare

from coma.pipeline.order import SampleOrder, mixed
from coma.shards.write.layout import shuffled_order

CLASSES, BATCHES, BATCH_SIZE = 1000, 200, 256
FAR = 4.0  # standard deviations; one in 16,000 random draws is as far, and the seeds are fixed

Labels = npt.NDArray[np.int64]


def sorted_labels(count: int) -> Labels:
    """Class after class, each of the same size: [N]."""
    return np.arange(count) * CLASSES // count


def in_shards(count: int, length: int) -> list[int]:
    """N samples in shards of one length, the last with what is left."""
    return [length] * (count // length) + [count % length] * (count % length > 0)


def deviation(labels: Labels, batches: npt.NDArray[np.int64]) -> float:
    """How far the class mix of [T, B] batches is from random draws', in standard deviations.

    The statistic is Pearson's chi-square of each batch against the data set's frequencies, summed over the
    batches. With a quarter of a sample expected in a cell it is not distributed as chi-square, so its own
    moments are taken: Haldane's for the multinomial distribution, times (N - B) / (N - 1) because a batch is
    drawn without replacement. Above: classes come in clumps. Below: they are dealt out too evenly.
    """
    share = np.bincount(labels, minlength=CLASSES) / len(labels)
    seen = np.stack([np.bincount(labels[batch], minlength=CLASSES) for batch in batches])  # [T, C]
    statistic = (np.square(seen - BATCH_SIZE * share) / (BATCH_SIZE * share)).sum()
    finite = (len(labels) - BATCH_SIZE) / (len(labels) - 1)
    variance = 2 * (CLASSES - 1) + ((1 / share).sum() - CLASSES**2 - 2 * CLASSES + 2) / BATCH_SIZE
    return float((statistic / finite - BATCHES * (CLASSES - 1)) / np.sqrt(BATCHES * variance))


def drawn(order: SampleOrder, part: float) -> npt.NDArray[np.int64]:
    """[T, B] ids, from a part of the first epoch on."""
    start = int(part * order.samples_per_epoch)
    return order.global_batch(start, BATCHES * BATCH_SIZE)[0].reshape(BATCHES, BATCH_SIZE)


def test_the_measure_knows_random_from_sorted_and_from_dealt() -> None:
    count = 100_000
    labels = sorted_labels(count)
    rng = np.random.default_rng(0)
    random = [
        deviation(labels, rng.permutation(count)[: BATCHES * BATCH_SIZE].reshape(BATCHES, BATCH_SIZE))
        for _ in range(20)
    ]
    assert abs(np.mean(random)) < 1
    assert 0.6 < np.std(random) < 1.5
    dealt = np.arange(count).reshape(CLASSES, -1).T.ravel()[: BATCHES * BATCH_SIZE]  # a sample of each in turn
    assert deviation(labels, dealt.reshape(BATCHES, BATCH_SIZE)) < -FAR
    clumps = rng.permutation(count // 4)[:, None] * 4 + np.arange(4)  # four neighbours at a time
    clumps = clumps.ravel()[: BATCHES * BATCH_SIZE].reshape(BATCHES, BATCH_SIZE)
    assert deviation(labels, clumps) > FAR


@pytest.mark.parametrize("part", [0.3, 0.97])
@pytest.mark.parametrize(
    ("count", "length"),
    [(1_280_000, 2300), (1_280_000, 100), (1_280_000, 20_000), (60_000, 1000), (60_000, 50)],
)
def test_sources_sorted_by_class_come_out_mixed(count: int, length: int, part: float) -> None:
    """As `coma shard` packs them, whatever its shards' size, and across the end of an epoch."""
    labels = sorted_labels(count)[shuffled_order(count, seed=0, split="train")]
    assert abs(deviation(labels, drawn(SampleOrder(in_shards(count, length), 1), part))) < FAR


@pytest.mark.parametrize(("count", "length"), [(60_000, 1000), (60_000, 60_000), (32_000, 500)])
def test_a_single_window_mixes_shards_sorted_by_class(count: int, length: int) -> None:
    """A data set of others, only indexed: its shards hold a class or a few each."""
    order = SampleOrder(in_shards(count, length), 1)
    assert abs(deviation(sorted_labels(count), drawn(order, 0.05))) < FAR


@pytest.mark.parametrize("length", [1280, 2300, 100])
@pytest.mark.parametrize("part", [0.3, 0.97])
def test_large_data_in_sorted_shards_is_mixed_all_together(length: int, part: float) -> None:
    labels, lengths = sorted_labels(1_280_000), in_shards(1_280_000, length)
    order = SampleOrder(lengths, 1, mixed=mixed(labels, np.array(lengths)))
    assert abs(deviation(labels, drawn(order, part))) < FAR


@pytest.mark.parametrize(("count", "length"), [(1_280_000, 2300), (1_280_000, 100), (60_000, 50), (3000, 10)])
@pytest.mark.parametrize("classes", [2, 1000])
def test_sorted_shards_are_told_from_random_draws(count: int, length: int, classes: int) -> None:
    rng = np.random.default_rng(classes)
    lengths = np.array(in_shards(count, length))
    even = (np.arange(count) * classes // count).astype(np.int32)
    uneven = np.sort(rng.zipf(1.5, count) % classes).astype(np.int32)
    for labels in (even, uneven):
        assert not mixed(labels, lengths)
        assert all(mixed(rng.permutation(labels), lengths) for _ in range(3))


def test_one_class_or_one_shard_is_mixed() -> None:
    assert mixed(np.zeros(1000, np.int32), np.array([500, 0, 500]))
    assert mixed(np.arange(1000) // 100, np.array([1000]))


def test_shards_that_are_not_mixed_are_one_window() -> None:
    lengths = [30, 0, 7, 12, 25]
    together, windows = SampleOrder(lengths, 3, window_shards=2, mixed=False), SampleOrder(lengths, 3)
    np.testing.assert_array_equal(together.samples(2, 0, 74), windows.samples(2, 0, 74))


def test_in_a_window_any_sample_comes_anywhere() -> None:
    """Every place is as likely for every sample, and neighbours part: over 400 epochs of 1200 samples."""
    order = SampleOrder([700, 500], 0)
    epochs = np.stack([order.samples(epoch, 0, 1200) for epoch in range(400)])
    places = np.stack([np.bincount(epochs[:, at] // 100, minlength=12) for at in range(0, 1200, 7)])
    assert chisquare(places.ravel()).pvalue > 1e-3
    steps = np.bincount(((epochs[:, 1:] - epochs[:, :-1]) % 1200).ravel(), minlength=1200)[1:]
    assert chisquare(steps).pvalue > 1e-3
    assert abs(np.corrcoef(epochs.ravel(), np.tile(np.arange(1200), 400))[0, 1]) < 4 / np.sqrt(epochs.size)
