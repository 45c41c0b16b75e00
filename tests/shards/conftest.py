"""Small source folders of seeded noise photographs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from drawn import encoded


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
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def tree() -> Callable[..., Path]:
    return write_tree


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return files_of
