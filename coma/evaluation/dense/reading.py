"""Frozen maps of a split's windows beside the classes of their pixels, out of the stream.

Legend: B windows of a batch, C channels, h, w patches down and across, S pixels of a window's side, H, W pixels of an
image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from coma.evaluation.dense.maps import dense_maps
from coma.evaluation.dense.windows import Windows
from coma.pipeline.masks import ClassIds, MaskReader, cut
from coma.shards.manifest import Manifest


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Some windows of a split."""

    maps: Tensor  # [B, C, h, w] float32, on the device
    truth: Tensor  # [B, S, S] uint8, on the device
    windows: list[int]  # [B] numbers of the windows
    masks: list[ClassIds]  # [B] whole masks [H, W] of their images


@dataclass(eq=False)
class WindowReader:
    """Reader of a split's windows through a frozen backbone in evaluation mode."""

    backbone: nn.Module
    manifest: Manifest
    windows: Windows
    masks: MaskReader
    window_size: int
    stride: int
    device: str
    stream_options: dict[str, Any]
    _last: tuple[int, ClassIds] | None = field(default=None, init=False)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    def batches(self, batch_size: int, order: npt.NDArray[np.int64] | None = None) -> Iterator[WindowBatch]:
        """Read the windows once, in their order or in that of the numbers given.

        Raises:
            DataError: an image or a mask cannot be read: no other may stand in for it.
            DivergedError: features are not finite.
        """
        from coma.pipeline import Stream

        order = np.arange(len(self.windows)) if order is None else order
        windows = self.windows[order]
        options = {**self.stream_options, "image_size": self.window_size}
        expanded = self.manifest.select(windows.image)
        with Stream(
            expanded,
            batch_size=batch_size,
            training=False,
            windows=windows.crops,
            device=self.device,
            fault_budget=0,
            **options,
        ) as stream:
            for batch in stream:
                numbers = order[batch.samples.cpu().numpy()].tolist()
                masks = [self._mask(int(self.windows.image[number])) for number in numbers]
                crops = self.windows.crops
                truth = cut(masks, crops[np.array(numbers)], self.window_size)
                maps = dense_maps(self.backbone, batch.images, self.stride)
                yield WindowBatch(maps, torch.from_numpy(truth).to(self.device), numbers, masks)

    def _mask(self, image: int) -> ClassIds:
        """Return the mask of an image, which is decoded once for windows that follow each other."""
        if self._last is None or self._last[0] != image:
            (mask,) = self.masks.read([image])
            self._last = (image, mask)
        return self._last[1]
