"""Order of samples in a mixture: which of several data sets each slot of the endless run belongs to.

Slot p of the run holds the next sample of data set s(p), in that data set's own order. The pattern s is fixed by the
shares alone and spread as evenly as can be; how many of the slots before p belong to a data set is a closed form, so
any position is computed, never reached by replay.

The data sets are the leaves of a binary tree, built by Huffman's rule. Of the first n slots that come to a node, the
nearest whole number to n x (share of its left child / share of the node) go left. Rounding errors shrink on their way
to the leaves, as a node has at most half the weight of the one two above it: after any number of slots each data set
has its share to within 1/2 of a slot if there are two of them, 1 if there are three, and 2 always.

Legend: M data sets, P slots, B samples.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coma.pipeline.counter import Purpose, hash_numpy
from coma.pipeline.order import SampleOrder

Int64Array = npt.NDArray[np.int64]

_Node = tuple[int, int, "int | tuple[_Node, _Node]"]
"""Weight; a number that orders nodes of equal weight; the data set's number, or the two children."""


class Pattern:
    """The data set of every slot, as a function of whole weights.

    Args:
        weights: [M] shares of the data sets, as integers above 0 that add up to at most 2^30.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        nodes: list[_Node] = [(weight, -number, number) for number, weight in enumerate(weights)]
        heapq.heapify(nodes)
        for number in range(len(weights), 2 * len(weights) - 1):
            right, left = heapq.heappop(nodes), heapq.heappop(nodes)  # of equal ones, the first comes first
            heapq.heappush(nodes, (left[0] + right[0], -number, (left, right)))
        self._root = nodes[0]
        self._count = len(weights)

    def counts(self, slots: Int64Array) -> Int64Array:
        """Count the slots of each data set among the first ones of the run.

        Args:
            slots: [P] how many slots, from the first on.

        Returns:
            [M, P], whose sum over the data sets is `slots`.
        """
        counts = np.empty((self._count, len(slots)), np.int64)
        below = [(self._root, np.asarray(slots, np.int64))]
        while below:
            (weight, _, content), coming = below.pop()
            if isinstance(content, int):
                counts[content] = coming
                continue
            left, right = content
            rounds, rest = np.divmod(coming, weight)  # a product of two whole numbers below 2^30 cannot overflow
            to_left = rounds * left[0] + (2 * rest * left[0] + weight) // (2 * weight)
            below += [(left, to_left), (right, coming - to_left)]
        return counts


class MixedOrder:
    """The endless order of the samples of several data sets, each in an order and in epochs of its own.

    The ids of a data set follow those of the data sets before it.

    Args:
        lengths: for each data set, the samples in each of its shards.
        weights: [M] shares, as `Pattern` takes them.
        seed: random seed of the orders.
        mixed: [M] for each data set, what `SampleOrder` takes.
    """

    def __init__(self, lengths: Sequence[Int64Array], weights: Sequence[int], seed: int, mixed: Sequence[bool]) -> None:
        self.seed = seed
        self._pattern = Pattern(weights)
        self._orders = [  # the number is part of the key, or two equal data sets would be in step
            SampleOrder(each, int(hash_numpy(Purpose.SOURCE, seed, number)), mixed=is_mixed)
            for number, (each, is_mixed) in enumerate(zip(lengths, mixed, strict=True))
        ]
        samples = [order.samples_per_epoch for order in self._orders]
        self._first_sample = np.concatenate([[0], np.cumsum(samples)])  # [M + 1]
        self.samples_per_epoch = int(self._first_sample[-1])

    def global_batch(self, start_sample: int, batch_size: int) -> tuple[Int64Array, Int64Array]:
        """The batch that begins `start_sample` slots after the first one.

        Returns:
            samples: [B] int64 ids.
            epochs: [B] int64, the epoch of each sample in its own data set, counted from 0.
        """
        counts = self._pattern.counts(np.arange(start_sample, start_sample + batch_size + 1))  # [M, B + 1]
        samples, epochs = np.empty(batch_size, np.int64), np.empty(batch_size, np.int64)
        for order, first, before in zip(self._orders, self._first_sample, counts, strict=False):
            slots = np.flatnonzero(np.diff(before))
            if len(slots):
                rows, epochs[slots] = order.global_batch(int(before[0]), len(slots))
                samples[slots] = first + rows
        return samples, epochs
