"""Resizing, mirroring and normalisation of decoded windows to the squares of a batch, on a CPU.

This was half of the work of a batch. torch resizes uint8 images in vector instructions, several times as fast as
DALI's or PIL's CPU code, and fastest where the channels lie side by side, as the decoder leaves them; so they stay
like that (docs/experiments.md). The result is that of PIL's antialiased bilinear filter, torchvision's default, to one
or two grey levels.

Legend: n windows, S side of a square.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coma.pipeline.crops import Crops
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.pipeline.preprocessing import MEAN as MEAN
from coma.pipeline.preprocessing import STD as STD

_SERIAL = 2**15  # values up to which torch takes no second thread, whose waiting would slow the trainer's


class Squares:
    """Maker of batches of squares, with threads of its own.

    Args:
        side: S, in pixels.
        threads: number of windows resized at a time.
        preprocessing: filter of resizing, mean and deviation.
    """

    def __init__(self, side: int, threads: int, preprocessing: Preprocessing = DEFAULT) -> None:
        self.side = side
        self._filter = preprocessing.interpolation
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "coma-resize") if threads > 1 else None
        # [S * 3], a row of pixels: what is done along an axis of 3 is slow
        colours = (preprocessing.mean, preprocessing.std)
        mean, std = (torch.tensor(values, dtype=torch.float32, device="cpu") for values in colours)
        self._scale = (1 / (255 * std)).repeat(side)
        self._shift = (-mean / std).repeat(side)

    def normalised(self, windows: Sequence[Tensor], mirrored: npt.NDArray[np.integer]) -> Tensor:
        """Resize, mirror and normalise a batch.

        Args:
            windows: n of [height, width, 3] uint8.
            mirrored: [n], 1 where left and right are to be swapped.

        Returns:
            [n, 3, S, S] float32 in channels-last order, normalised.
        """
        batch = torch.empty(len(windows), self.side, self.side, 3, dtype=torch.float32, device="cpu")
        values = batch.flatten(2)  # [n, S, S * 3]

        def place(at: int) -> None:
            for rows, part in self._square(windows[at], bool(mirrored[at])):
                value = values[at, rows].copy_(part.flatten(1))
                torch.addcmul(self._shift, value, self._scale, out=value)

        self._each(len(windows), place)
        return batch.permute(0, 3, 1, 2)

    def raw(self, windows: Sequence[Tensor], mirrored: npt.NDArray[np.integer]) -> Tensor:
        """Resize and mirror a batch, left as uint8 in pinned memory for a GPU to `normalise`."""
        pinned = torch.cuda.is_available()
        shape = (len(windows), self.side, self.side, 3)
        batch = torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=pinned)

        def place(at: int) -> None:
            for rows, part in self._square(windows[at], bool(mirrored[at])):
                batch[at, rows] = part

        self._each(len(windows), place)
        return batch.permute(0, 3, 1, 2)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _square(self, window: Tensor, mirrored: bool) -> Iterator[tuple[slice, Tensor]]:
        """Resize and mirror a window; yield its rows in parts, each [rows, S, 3] uint8."""
        size = (self.side, self.side)
        planes = window[None].permute(0, 3, 1, 2)  # by these strides torch knows them as channels-last
        square = torch.nn.functional.interpolate(planes, size, mode=self._filter, antialias=True)
        square = square.permute(0, 2, 3, 1)[0]
        step = max(1, _SERIAL // (3 * self.side))
        for top in range(0, self.side, step):
            part = square[top : top + step]
            yield slice(top, top + step), part.flip(1) if mirrored else part

    def _each(self, count: int, place: Callable[[int], None]) -> None:
        """Call `place` for 0..count-1, shared among the threads."""

        def share(first: int) -> None:
            for at in range(first, count, self._threads):
                place(at)

        if self._pool is None:
            share(0)
        else:
            list(self._pool.map(share, range(self._threads)))


def normalise(squares: Tensor, preprocessing: Preprocessing = DEFAULT) -> Tensor:
    """Normalise [n, 3, S, S] uint8 to float32 with a network's mean and deviation, on the tensor's own device."""
    both = torch.tensor((preprocessing.mean, preprocessing.std), dtype=torch.float32, device=squares.device)
    mean, std = both.view(2, 3, 1, 1) * 255
    return squares.float().sub_(mean).div_(std)


def turned(images: Tensor, crops: Crops) -> Tensor:
    """Turn mirrored square images [n, C, S, S] in place, as `crops.quarters` says."""
    if crops.quarters is None:
        return images
    for quarters in (1, 2, 3):
        chosen = np.flatnonzero(crops.quarters == quarters)
        if len(chosen):
            at = torch.from_numpy(chosen).to(images.device)
            images[at] = images[at].rot90(quarters, (2, 3))
    return images
