"""Fixed subset of a data set, for evaluations during training."""

import numpy as np

from coma.pipeline.order import mixed
from coma.shards.manifest import Manifest


def few_of(manifest: Manifest, most: int) -> Manifest:
    """Return the manifest of at most `most` of the samples, always the same ones, in their order.

    They are the first ones, as shards are random draws, so that few shards are read; where the labels say that
    shards are sorted by class, they are spread evenly over all.
    """
    if len(manifest) <= most:
        return manifest
    label = manifest.label
    rows = np.arange(most)
    if label is not None and not mixed(label, manifest.shard_lengths):
        rows = rows * len(manifest) // most
    return manifest.select(rows)
