"""Facts about an array that its file's header states, and a window of it.

Legend: H, W sides in pixels, C channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
"""[H, W, C], of the sample's type in native byte order."""


@dataclass(frozen=True)
class ArrayFacts:
    """What the header of a file says of its array, or of the first picture if it holds several."""

    width: int
    """Pixels, as stored."""
    height: int
    channels: int
    dtype: str
    """Type of the values, as numpy calls it: "uint16"."""
    format: str
    """Format of the bytes: "tiff", "png" or "npy"; of a source's file, also "dicom"."""
    kept: bool = True
    """Whether the stream reads the array from these bytes; otherwise they are written anew, without loss."""
    why: str = ""
    """Why not, in a few words."""
    turned: bool = False
    """Whether the picture is stored with its sides swapped, and shown by its orientation."""

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all values."""
        return self.pixels * self.channels * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Window:
    """A window of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """First row below it."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column to the right of it."""
        return self.left + self.width
