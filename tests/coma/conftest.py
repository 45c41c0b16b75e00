"""A small sharded data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import sharded

IMAGES = 24


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of coloured noise in two classes, sharded."""
    return sharded(
        tmp_path_factory.mktemp("noise"),
        IMAGES,
        classes=("class0", "class1"),
        size=lambda number: (48 + number, 40),
        smooth=True,
    )


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
