"""Sources of samples that are not 8-bit RGB: any channels, 8, 16 or 32 bits, as .npy and TIFF."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from tiffs import tiff_bytes

DTYPES = ("uint8", "uint16", "int16", "float32")


def drawn_array(channels: int, dtype: str, height: int = 61, width: int = 83, seed: int = 0) -> npt.NDArray[np.generic]:
    """Smooth values with noise [H, W, C], negative ones where the type has them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    values = 90 + 60 * np.sin(y / 9)[..., None] + 40 * np.cos(x / 7)[..., None] * np.arange(1, channels + 1) / channels
    values = values + generator.normal(0, 3, (height, width, channels))
    if dtype != "uint8":
        values = values * 100 - (15_000 if dtype in ("int16", "float32") else 0)
    return np.clip(values, 0 if dtype.startswith("u") else None, 255 if dtype == "uint8" else 32_000).astype(dtype)


def write_arrays(
    root: Path, channels: int = 5, dtype: str = "uint16", per_class: int = 6, classes: tuple[str, ...] = ("a", "b")
) -> dict[str, npt.NDArray[np.generic]]:
    """Write samples of various sizes in a folder a class, by turns as .npy and TIFF; return them by path."""
    written = {}
    for number, name in enumerate(f"{name}/{i}" for name in classes for i in range(per_class)):
        array = drawn_array(channels, dtype, 24 + number, 40 - number, number)
        path = root / f"{name}{('.npy', '.tif')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            path.write_bytes(tiff_bytes(array, 1, planes=1 + number // 2 % 2, compression=8 if number % 3 else 1))
        else:
            np.save(path, array)
        written[str(path.relative_to(root))] = array
    return written
