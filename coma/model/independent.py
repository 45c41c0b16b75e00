"""The control for complementarity: K views of an image that are independent random masks.

Each view sees as many units as CoMA's does, drawn anew from the whole image, and predicts from what it hides as
many as CoMA's does. Everything else is CoMA's own code, so that the two differ in nothing but whether what one
view hides is what the others see.

Legend: B images, K views, U mask units.
"""

from dataclasses import replace

import torch
from torch import Tensor

from coma.model.coma import CoMA
from coma.model.decoder import Painting, units_in
from coma.pipeline.counter import hash_torch
from coma.pipeline.views import view_sizes


class IndependentMasks(CoMA):
    """CoMA with a random mask of its own for each view; takes what `CoMA` takes.

    The units of all views that are seen lie first, U of them, some twice and some never; then, view after view,
    those that it hides. So it encodes as many tokens and makes as many predictions as CoMA does.
    """

    def lay_units(self, units: Tensor) -> Tensor:
        """[B, U] to [B, K·U]: what each view sees, then what each view hides."""
        draws = torch.ops.coma.independent_units(units, self.views).unbind(1)  # K of [B, U]
        sizes = view_sizes(units.shape[1], self.views)
        seen = [draw[:, :size] for draw, size in zip(draws, sizes, strict=True)]
        hidden = [draw[:, size:] for draw, size in zip(draws, sizes, strict=True)]
        return torch.cat([*seen, *hidden], dim=1)

    def paintings(self, units: int, every: bool = False) -> tuple[Painting, ...]:
        """CoMA's, but what a view predicts is taken from what it hides itself."""
        own, start = [], units
        for painting in super().paintings(units, every):
            own.append(replace(painting, hidden=((start, start + units_in(painting.hidden)),)))
            start += units - units_in([painting.visible])
        return tuple(own)


def independent_units(units: Tensor, views: int) -> Tensor:
    """K independent permutations for each image, all drawn from the one that the stream gives.

    They are ranked by a hash of (the given permutation, view, unit), so they are as repeatable as it is: the same
    for the same seed, epoch and sample, whatever else is in the batch. Of U units there are U! permutations to
    start from: enough from 9 units on, while 4 units have but 24.

    Args:
        units: [B, U] int64, a random permutation of 0..U-1 a row.
        views: K.

    Returns:
        [B, K, U] int64.
    """
    place = torch.arange(units.shape[1], device=units.device)
    # A hash of a set is the sum of its members' hashes (Zobrist), which needs no loop over the U of them.
    keys = hash_torch(place, units).sum(dim=1)  # [B]
    view = torch.arange(views, device=units.device)
    ranks = hash_torch(keys[:, None, None], view[:, None], place)  # [B, K, U]
    return ranks.argsort(dim=2, stable=True)


# One operation to torch.compile, whose index arithmetic does not wrap around at 64 bits as the hash does.
torch.library.custom_op("coma::independent_units", independent_units, mutates_args=()).register_fake(
    lambda units, views: units.new_empty(units.shape[0], views, units.shape[1])
)
