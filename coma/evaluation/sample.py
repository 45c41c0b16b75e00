"""Subsets of a data set: a fixed one, for evaluations during training, and any other."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from coma.pipeline.order import mixed
from coma.shards.manifest import Manifest
from coma.shards.manifest.columns import DTYPES


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
    return rows_of(manifest, rows)


def rows_of(manifest: Manifest, rows: npt.NDArray[np.int64]) -> Manifest:
    """Return the manifest of some of the samples [n], one as often as it is listed."""
    columns = {name: column[rows] for name in DTYPES if (column := getattr(manifest, name)) is not None}
    return replace(
        manifest,
        **columns,
        shard_lengths=np.bincount(columns["shard_id"], minlength=len(manifest.shards)),
        rows=rows if manifest.rows is None else manifest.rows[rows],
    )
