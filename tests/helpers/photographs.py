"""Generated pictures for the tests of this folder."""

import numpy as np
from PIL import Image


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Smooth random colours with some detail: what a JPEG is made for, and no symmetry."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)).resize(
        (width, height)
    )
    return Image.blend(coarse, fine, 0.2)
