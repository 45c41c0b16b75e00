"""Frozen features: a split's images through a backbone in evaluation mode, tokens averaged.

Legend: B images, T tokens, C channels, N samples of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from coma.errors import DataError, DivergedError

if TYPE_CHECKING:
    from coma.pipeline.stream import Batch


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features of one split, on the CPU, in the manifest's order."""

    x: Tensor  # [N, C] float32
    labels: Tensor | None  # [N] int64
    samples: Tensor  # [N] int64, global sample ids

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def select(self, chosen: Tensor) -> Features:
        """Keep the rows where `chosen` [N] (bool) is true, or the rows it lists (int64)."""
        labels = None if self.labels is None else self.labels[chosen]
        return Features(self.x[chosen], labels, self.samples[chosen])

    def require_labels(self) -> Tensor:
        """Return the labels [N]; DataError if there are none."""
        if self.labels is None:
            raise DataError("the data have no labels, so nothing can be probed; shard class folders")
        return self.labels


def joined(parts: Sequence[Features]) -> Features:
    """Put features of consecutive samples together."""
    labels = [part.labels for part in parts if part.labels is not None]
    return Features(
        torch.cat([part.x for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        torch.cat([part.samples for part in parts]),
    )


def held_out_fifth(count: int, image: Tensor | None = None) -> Tensor:
    """Choose a fifth of `count` rows, always the same ones and at random: bool [N], true for the held out.

    Where rows are tiles, `image` [N] int64 numbers what they were cut from: then all rows of a fifth of the images are
    chosen, and of one image at least, if there are others.
    """
    if image is not None:
        numbers, row_image = torch.unique(image, return_inverse=True)
        of_images = held_out_fifth(len(numbers))
        of_images[:1] |= 1 < len(numbers) < 5
        return of_images[row_image.cpu()]
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 5]] = True
    return chosen


def pool(backbone: nn.Module, images: Tensor) -> Tensor:
    """Average `backbone.forward_features(images)` over its tokens: images [B, 3, H, W] → [B, C].

    A map [B, h, w, C] (DyViT) is averaged over h and w; a sequence [B, T, C] (timm's ViT) over its patch
    tokens, without class and register tokens. A ViT that norms what is averaged, and not the tokens, does so here too.
    """
    tokens: Tensor = backbone.forward_features(images)  # type: ignore[operator]
    if tokens.ndim == 4:
        return tokens.mean(dim=(1, 2))
    pooled = tokens[:, int(getattr(backbone, "num_prefix_tokens", 0)) :].mean(dim=1)
    fc_norm = getattr(backbone, "fc_norm", None)
    return pooled if fc_norm is None else fc_norm(pooled)  # the identity where the tokens are normed


@torch.no_grad()
def extract(
    backbone: nn.Module, batches: Iterable[Batch], after_batch: Callable[[int], None] = lambda _: None
) -> Features:
    """Run the frozen backbone over batches (a `Stream(training=False)`) in float32 and collect its features.

    The backbone's mode is put back afterwards. `after_batch(done)` is called with the images done so far.

    Raises:
        DataError: there is no image.
        DivergedError: features are not finite.
    """
    was_training = backbone.training
    backbone.eval()
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    samples: list[Tensor] = []
    done = 0
    try:
        for batch in batches:
            with torch.autocast(batch.images.device.type, enabled=False):
                rows.append(pool(backbone, batch.images.float()).float().cpu())
            samples.append(batch.samples.cpu())
            if batch.labels is not None:
                labels.append(batch.labels.cpu())
            done += len(batch.images)
            after_batch(done)
    finally:
        backbone.train(was_training)
    if not rows:
        raise DataError("the split holds no sample, so there are no features to take")
    x = torch.cat(rows)
    if failed := int((~x.isfinite().all(dim=1)).sum()):
        raise DivergedError(f"the features of {failed:,} of {len(x):,} images are not finite")
    return Features(x, torch.cat(labels) if labels else None, torch.cat(samples))
