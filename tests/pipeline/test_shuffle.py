"""Whether batches are random draws: the mix of their classes, where the source was sorted by class.

Legend: N samples, C classes, T batches of B samples.
"""

import numpy as np
import numpy.typing as npt
import pytest

from coma.pipeline.order import SampleOrder
from coma.shards.plan import shuffled

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
    dealt = (
        np.arange(count).reshape(CLASSES, -1).T.ravel()[: BATCHES * BATCH_SIZE]
    )  # a sample of each in turn
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
    labels = sorted_labels(count)[shuffled(count, seed=0, split="train")]
    assert abs(deviation(labels, drawn(SampleOrder(in_shards(count, length), 1), part))) < FAR


@pytest.mark.parametrize(("count", "length"), [(60_000, 1000), (60_000, 60_000), (32_000, 500)])
def test_a_single_window_mixes_shards_sorted_by_class(count: int, length: int) -> None:
    """A data set of others, only indexed: its shards hold a class or a few each."""
    order = SampleOrder(in_shards(count, length), 1)
    assert abs(deviation(sorted_labels(count), drawn(order, 0.05))) < FAR


@pytest.mark.parametrize("length", [1280, 2300, 100])
def test_large_data_in_sorted_shards_is_mixed_by_a_window_of_all(length: int) -> None:
    count, lengths = 1_280_000, in_shards(1_280_000, length)
    order = SampleOrder(lengths, 1, window_shards=len(lengths))
    assert abs(deviation(sorted_labels(count), drawn(order, 0.3))) < FAR
