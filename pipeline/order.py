"""Order of samples: which of them are in step t, as pure functions of (shard lengths, seed, position).

An epoch's order is made in two keyed shuffles. The shards are permuted, and the permuted list is cut into
windows of neighbouring shards; then the samples of each window are permuted among themselves. So

- every epoch is exactly a permutation of the samples, another one each epoch;
- it does not depend on the number of ranks, workers or prefetched batches: a rank takes its part of a global
  batch;
- any position is computed, never reached by replay: the samples' permutation is a function that is
  evaluated where it is asked for, and only that of the shards is built;
- only a window's shards are read at a time, so that remote data is fetched once an epoch and few files are
  open.

A window has 2^15 samples or more where the data set does, but never more than 64 shards. Sharding shuffles
the images globally once, so a shard is itself a random draw of the data set; 2^15 samples, 33 times
ImageNet's classes, then mix as well as all would. A data set of fewer samples (in at most 64 shards) is a
single window: a full shuffle. The windows of an epoch have nearly the same number of shards, so no small one
is left over at its end.

Shards that other tools made may be sorted by class, and only a window of all of them mixes those. `mixed` detects
them; their samples are one window, and every shard is in use all the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coma.pipeline.counter import Purpose, UInt64Array, below, hash_numpy, hash_on

Int64Array = npt.NDArray[np.int64]

_DIGEST_BITS = 64
_LIMB_BITS = 16

WINDOW_SAMPLES = 2**15
WINDOW_SHARDS = 64
_EPOCHS_KEPT = 2
_FEISTEL_ROUNDS = 8  # at least
_FEISTEL_BITS = 48.0  # hashed by all rounds together, log2(root) by each
_LABELS_LOOKED_AT = 2**17  # of a shard
_CLASSES_KEPT = 2**12
_FAR = 8.0  # standard deviations; sorted shards are hundreds away


class HasShardLengths(Protocol):
    """A manifest, as far as an order needs it."""

    @property
    def shard_lengths(self) -> Int64Array:
        """Samples in each shard."""


class EndlessOrder(Protocol):
    """An order without end, which passes over the samples again and again."""

    def global_batch(self, start_sample: int, batch_size: int) -> tuple[Int64Array, Int64Array]:
        """The ids of the samples after the first `start_sample`, and the epoch of each: both [B]."""


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The shards of one epoch, permuted and cut into windows. S shards, W windows that have samples."""

    shards: Int64Array  # [S] shard numbers
    starts: Int64Array  # [S + 1] positions in the epoch that they begin at, before the samples are permuted
    windows: Int64Array  # [W + 1] positions that the windows begin at


class SampleOrder:
    """The endless order of a split's samples.

    Sample ids are row numbers of the manifest: shard s holds the ids from sum(shard_lengths[:s]) on.

    Args:
        shard_lengths: samples in each shard, or an object with a `shard_lengths` of that kind (a manifest).
        seed: random seed of the order.
        window_shards: shards in a window; by default as the module's docstring says.
        mixed: whether each shard is a random draw of the data set. If not, all of them are one window.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(
        self,
        shard_lengths: Sequence[int] | Int64Array | HasShardLengths,
        seed: int,
        *,
        window_shards: int | None = None,
        mixed: bool = True,
    ) -> None:
        lengths = np.asarray(getattr(shard_lengths, "shard_lengths", shard_lengths), dtype=np.int64)
        if lengths.ndim != 1 or int(lengths.sum()) == 0:
            raise ValueError("a sample order needs at least one sample")
        self.seed = seed
        self.samples_per_epoch = int(lengths.sum())
        self._lengths = lengths
        self._first_sample = np.concatenate([[0], np.cumsum(lengths)])  # [S + 1] sample id each shard begins with
        self._window_count = _window_count(lengths, window_shards) if mixed else 1
        self._epochs: dict[int, _Epoch] = {}  # never changed, only replaced: threads share it without a lock

    def samples(self, epoch: int, start: int, stop: int) -> Int64Array:
        """The ids at positions [start, stop) of an epoch.

        Returns:
            [stop - start] int64.

        Raises:
            IndexError: if the range leaves [0, samples_per_epoch].
        """
        if not 0 <= start <= stop <= self.samples_per_epoch:
            raise IndexError(f"positions {start} to {stop} of an epoch of {self.samples_per_epoch} samples")
        layout = self._epoch(epoch)
        places = np.arange(start, stop)
        first = int(np.searchsorted(layout.windows, start, side="right")) - 1
        last = int(np.searchsorted(layout.windows, stop, side="left"))
        for window in range(first, last):
            begin, end = layout.windows[window : window + 2].tolist()
            part = slice(max(begin - start, 0), end - start)
            key = hash_numpy(Purpose.SAMPLES, self.seed, epoch, window)
            places[part] = begin + _permuted(places[part] - begin, end - begin, key)
        at = np.searchsorted(layout.starts, places, side="right") - 1
        return self._first_sample[layout.shards[at]] + places - layout.starts[at]

    def global_batch(self, start_sample: int, batch_size: int) -> tuple[Int64Array, Int64Array]:
        """The batch that begins `start_sample` samples after the first sample of the first epoch.

        It goes on into the next epoch where one ends: nothing is dropped or padded.

        Returns:
            samples: [B] int64 ids.
            epochs: [B] int64, the epoch of each sample, counted from 0.
        """
        samples, epochs = [], []
        position, stop = start_sample, start_sample + batch_size
        while position < stop:
            epoch, offset = divmod(position, self.samples_per_epoch)
            count = min(stop - position, self.samples_per_epoch - offset)
            samples.append(self.samples(epoch, offset, offset + count))
            epochs.append(np.full(count, epoch, np.int64))
            position += count
        return np.concatenate(samples), np.concatenate(epochs)

    def _epoch(self, epoch: int) -> _Epoch:
        kept = self._epochs
        if epoch not in kept:
            count = len(self._lengths)
            # Hashes that differ in their last key alone differ, so all ways of sorting them agree.
            shards = np.argsort(hash_numpy(Purpose.SHARDS, self.seed, epoch, np.arange(count)))
            edges = np.arange(self._window_count + 1) * count // self._window_count
            starts = np.concatenate([[0], np.cumsum(self._lengths[shards])])
            windows = starts[edges]
            windows = windows[np.diff(windows, prepend=-1) > 0]  # without those that have no samples
            newest = list(kept.items())[1 - _EPOCHS_KEPT :]
            self._epochs = kept = {**dict(newest), epoch: _Epoch(shards, starts, windows)}
        return kept[epoch]


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """A rank's contiguous part of a global batch; the parts of two ranks differ by one sample at most."""
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


def mixed(labels: npt.NDArray[np.integer], shard_lengths: Int64Array) -> bool:
    """Whether each shard is a random draw of the data set, judged by the classes in 64 of the shards at most.

    The measure is Pearson's chi-square of shards against classes, in standard deviations of what random draws
    give (Haldane's variance for small counts). The order depends on it, so it is part of the checkpoint
    format.

    Args:
        labels: [N] classes from 0 on, in the order of the shards.
        shard_lengths: [S].
    """
    ends, looked_at = np.cumsum(shard_lengths), np.flatnonzero(shard_lengths)
    looked_at = looked_at[:: -(-len(looked_at) // WINDOW_SHARDS)]
    parts = [labels[ends[s] - shard_lengths[s] : ends[s]][:_LABELS_LOOKED_AT] for s in looked_at]
    # [shards, C]; should there be more classes, several are taken as one
    seen = np.stack([np.bincount(part % _CLASSES_KEPT, minlength=_CLASSES_KEPT) for part in parts])
    seen = seen[:, seen.any(axis=0)]
    (shards, classes), lengths = seen.shape, seen.sum(axis=1, keepdims=True)
    share = seen.sum(axis=0) / seen.sum()
    expected = lengths * share
    deviation = float((np.square(seen - expected) / expected).sum()) - (shards - 1) * (classes - 1)
    spread = float((1 / share).sum()) - classes**2 - 2 * classes + 2
    variance = float((2 * (classes - 1) + spread / lengths).sum())
    return bool(deviation <= _FAR * math.sqrt(max(variance, 1.0)))


def _permuted(positions: Int64Array, count: int, key: UInt64Array) -> Int64Array:
    """Images of some positions under a keyed permutation of 0..count-1.

    A Feistel network over pairs of numbers below a root of `count`, and what leaves the range goes through it
    again until it is back ("cycle walking": Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA
    2002). The root is even: over an odd one, all permutations would have the same sign. A small one takes more
    rounds, since each hashes fewer bits.
    """
    root = (math.isqrt(count - 1) // 2 + 1) * 2
    rounds = max(_FEISTEL_ROUNDS, math.ceil(_FEISTEL_BITS / math.log2(root)))
    shifts = below(hash_on(key, np.arange(rounds)[:, None], np.arange(root)), root)
    permuted = positions.copy()
    outside = np.arange(len(permuted))
    while len(outside):
        left, right = np.divmod(permuted[outside], root)
        for shift in shifts:
            left, right = right, (left + shift[right]) % root
        permuted[outside] = left * root + right
        outside = outside[permuted[outside] >= count]
    return permuted


def _window_count(lengths: Int64Array, window_shards: int | None) -> int:
    shards = len(lengths)
    if window_shards is not None:
        return max(1, -(-shards // window_shards))
    by_samples = min(shards, int(lengths.sum()) // WINDOW_SAMPLES)
    return max(1, by_samples, -(-shards // WINDOW_SHARDS))


@dataclass(frozen=True, eq=False)
class Step:
    """The samples of one global batch, before any rank takes its part. B samples."""

    number: int  # from 1
    samples: Int64Array  # [B] ids
    epochs: Int64Array  # [B] from 0
    stop_sample: int  # samples consumed once this step is done


@dataclass(frozen=True, eq=False)
class Planner:
    """The samples of each step, as a pure function of the position in the run.

    Args:
        order: the endless order of a training run, or None for one pass over the manifest as it stands.
        samples_per_epoch: N, the samples of the split.
        batch_size: samples in a global batch.
    """

    order: EndlessOrder | None
    samples_per_epoch: int
    batch_size: int

    def at(self, start_sample: int) -> Step | None:
        """The step that begins after `start_sample` samples; None past the end of a single pass."""
        number = start_sample // self.batch_size + 1
        if self.order is not None:
            samples, epochs = self.order.global_batch(start_sample, self.batch_size)
        elif start_sample < self.samples_per_epoch:
            stop = min(start_sample + self.batch_size, self.samples_per_epoch)
            samples = np.arange(start_sample, stop, dtype=np.int64)
            epochs = np.zeros_like(samples)
        else:
            return None
        return Step(number, samples, epochs, start_sample + len(samples))


def digest_limbs(samples: Sequence[int]) -> list[float]:
    """Hash a rank's sample ids to four numbers whose sums over ranks float64 holds exactly, in any order."""
    total = int(hash_numpy(np.asarray(samples, dtype=np.int64)).sum(dtype=np.uint64))
    return [float(total >> shift & (1 << _LIMB_BITS) - 1) for shift in range(0, _DIGEST_BITS, _LIMB_BITS)]


def digest(limbs: Sequence[float]) -> str:
    """Return the hex digest of a global batch from the sums of its ranks' `digest_limbs`."""
    total = sum(int(limb) << _LIMB_BITS * place for place, limb in enumerate(limbs))
    return f"{total % (1 << _DIGEST_BITS):016x}"
