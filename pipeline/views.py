"""Complementary views: the mask units that each of K views of an image sees, computed on the device of the samples.

An image is a grid of U mask units (7 x 7 units of 32 px at 224). Its units are ranked by a hash of (seed,
epoch, sample, unit) and the ranking is cut into K parts as equal as can be: every unit is in exactly one
view. What one view hides is what the others see.

Legend: B images, U mask units, K views.
"""

import torch
from torch import Tensor

from coma.pipeline.counter import Purpose, hash_torch


def view_sizes(units: int, views: int) -> tuple[int, ...]:
    """Number of units in each view: as equal as can be, larger views first.

    >>> view_sizes(49, 2), view_sizes(49, 4)
    ((25, 24), (13, 12, 12, 12))

    Raises:
        ValueError: unless 1 <= views <= units.
    """
    if not 1 <= views <= units:
        raise ValueError(f"{views} views of {units} units: every view needs at least one unit")
    return tuple(units // views + (view < units % views) for view in range(views))


def partition_units(samples: Tensor, epochs: Tensor, *, seed: int, units: int) -> Tensor:
    """Permute each image's units so that its views lie side by side.

    View k sees `result[:, sum(sizes[:k]) : sum(sizes[:k + 1])]` with `sizes = view_sizes(units, views)`. The
    permutation does not depend on K, nor on which other images are in the batch.

    Args:
        samples: [B] int64 global sample ids.
        epochs: [B] int64, on the same device.
        seed: random seed of the run.
        units: U, mask units in an image.

    Returns:
        [B, U] int64 on the same device: each row a permutation of 0..U-1 (raster order of the units).
    """
    keys = hash_torch(Purpose.UNITS, int(seed), epochs.long(), samples.long())  # [B]; int32 would wrap early
    unit = torch.arange(units, device=samples.device)
    ranks = hash_torch(keys[:, None], unit[None, :])  # [B, U]
    return torch.argsort(ranks, dim=1, stable=True)
