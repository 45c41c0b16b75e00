"""A linear layer on frozen patches, fitted to pixels as DINOv2's is (arXiv 2304.07193, 7.4, on ADE20K).

Batch normalisation and a 1 x 1 convolution; their logits are interpolated to the pixels, which each have a
cross-entropy. AdamW, learning rate 1e-3, decay 1e-4, batches of 16, linear warmup and decay. DINOv2's 40,000 steps are
32 passes over ADE20K, which is what is made here; its random crops and flips are not, as maps are computed once.

Legend: B windows, C channels, h, w patches down and across, S pixels of a window's side, L classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coma.evaluation.dense.assemble import Resampling, resize_weights
from coma.evaluation.dense.patches import IGNORED

BATCH = 16
PASSES = 32
LEAST_STEPS = 1000
"""Number of steps where 32 passes are fewer."""
_LR = 1e-3
_WEIGHT_DECAY = 1e-4
_WARMUP = 0.0375  # 1,500 of 40,000 steps
_INIT_STD = 0.01

Pass = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Maps [B, C, h, w] and classes of pixels [B, S, S] of each batch of the pass with this number."""


@dataclass(frozen=True, eq=False)
class PixelHead:
    """A fitted linear layer; the normalisation is part of it."""

    weight: Tensor  # [L, C]
    bias: Tensor  # [L]
    resampling: ClassVar[Resampling] = "bilinear"

    def scores(self, maps: Tensor) -> Tensor:
        """Score maps [B, C, h, w] by logits: [B, L, h, w]."""
        return F.conv2d(maps, self.weight[:, :, None, None], self.bias)


def fit_pixels(batches: Pass, windows: int, channels: int, classes: int, device: str) -> PixelHead:
    """Fit a head to the pixels of `windows` windows, with the same result every time."""
    steps_a_pass = ceil(windows / BATCH)
    passes = max(PASSES, ceil(LEAST_STEPS / steps_a_pass))
    steps = passes * steps_a_pass
    norm = nn.BatchNorm2d(channels).to(device).train()
    start = torch.randn(classes, channels, generator=torch.Generator().manual_seed(0)) * _INIT_STD
    weight, bias = nn.Parameter(start.to(device)), nn.Parameter(torch.zeros(classes, device=device))
    optimizer = torch.optim.AdamW([*norm.parameters(), weight, bias], lr=_LR, weight_decay=_WEIGHT_DECAY)
    warmup = max(1, round(_WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: min((at + 1) / warmup, 1.0) * (1 - at / steps))
    with torch.enable_grad():
        for number in range(passes):
            for maps, truth in batches(number):
                if bool((truth == IGNORED).all()):
                    continue
                logits = F.conv2d(norm(maps), weight[:, :, None, None], bias)
                optimizer.zero_grad()
                pixel_loss(logits, truth).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    norm.eval()
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    folded = weight * scale
    return PixelHead(folded.detach(), (bias + weight @ shift).detach())


def pixel_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of logits [B, L, h, w], interpolated to the pixels, with their classes [B, S, S].

    Interpolated by products of matrices, whose gradient on a GPU is the same every time.
    """
    side = truth.shape[1]
    down, across = (resize_weights(count, side, "bilinear", logits.device) for count in logits.shape[2:])
    pixels = (down @ logits @ across.T).permute(0, 2, 3, 1)  # [B, S, S, L]
    return F.cross_entropy(pixels.flatten(0, 2), truth.flatten().long(), ignore_index=IGNORED)
