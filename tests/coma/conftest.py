"""A small sharded data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

IMAGES = 24


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of coloured noise in two classes, sharded."""
    source, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("sharded") / "data"
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        folder = source / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48 + number, 40), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg"
        )
    shard(source, out, ShardOptions(workers=1))
    return out


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
