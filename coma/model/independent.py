"""The control for complementarity: CoMA with an independent random mask for each view.

Each view sees as many units as CoMA's does, drawn anew from the whole image, and predicts from what it hides as
many as CoMA's does. Everything else is CoMA's own code, so that the two differ in nothing but whether what one
view hides is what the others see.

Legend: B images, K views, U mask units, V_k visible and W_k hidden units of view k.
"""

import torch
from torch import Tensor

from coma.model.coma import CoMA
from coma.pipeline.counter import hash_torch


class IndependentMasks(CoMA):
    """CoMA with a random mask of its own for each view; takes what `CoMA` takes."""

    def split_units(self, units: Tensor, predict_all: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Each view sees the first units of a permutation of its own, and predicts those that follow.

        It sees and predicts as many as CoMA's view does, so as many tokens are encoded and predicted.
        """
        permutations = torch.ops.coma.independent_units(units, self.views).unbind(1)  # K of [B, U]
        visible, hidden = [], []
        for own, visible_k, hidden_k in zip(permutations, *super().split_units(units, predict_all), strict=True):
            visible.append(own[:, : visible_k.shape[1]])
            hidden.append(own[:, visible_k.shape[1] : visible_k.shape[1] + hidden_k.shape[1]])
        return visible, hidden


def independent_units(units: Tensor, views: int) -> Tensor:
    """Derive K independent permutations for each image from the one that the stream gives.

    They are ranked by a hash of (the given permutation, view, unit), so they are as repeatable as it is: the same
    for the same seed, epoch and sample, whatever else is in the batch. Of U units there are U! permutations to
    start from: enough from 9 units on, while 4 units have but 24.

    Args:
        units: [B, U] int64, a random permutation of 0..U-1 a row.
        views: K, the number of permutations.

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
