"""One small run for the tests of the Python interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import coma

SMALL: dict[str, Any] = {
    "model": "dyvit_nano",
    "image_size": 32,
    "patch_size": 2,
    "batch_size": 4,
    "workers": 1,
    "steps": 2,
}


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Keyword arguments of a run that takes a second."""
    return SMALL


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of such a run."""
    return coma.pretrain(data, out=tmp_path_factory.mktemp("api") / "run", **SMALL)
