"""Small source folders of seeded noise photographs."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(seed: int, width: int = 40, height: int = 30, form: str = "JPEG", **options: object) -> bytes:
    """An encoded image of seeded noise, smooth enough to look like something."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_tree(root: Path, per_class: int = 6, classes: tuple[str, ...] = ("cat", "dog", "emu")) -> Path:
    """`per_class` photographs in each class folder, of sizes that vary."""
    seed = 0
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            (root / name / f"{i:03d}.JPEG").write_bytes(encoded(seed, 32 + 3 * (i % 9), 64 - 2 * (i % 7)))
            seed += 1
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def tree() -> Callable[..., Path]:
    return write_tree


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return files_of
