"""The smallest runs that go the whole way, and what to compare of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coma.training import PretrainConfig


def small(data: Path, out: Path, **fields: Any) -> PretrainConfig:
    """Four steps of four images of 32 px: seconds."""
    given = {"steps": 4, "batch_size": 4, "workers": 1, **fields}
    return PretrainConfig(data=data, out=out, model="dyvit_tiny", image_size=32, patch_size=2, **given)


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def course(run: Path) -> list[tuple[int, float, float, float, str]]:
    """What must be equal, to the last bit, in two runs that are the same."""
    keys = ("step", "loss", "lr", "grad_norm", "batch_digest")
    return [tuple(line[key] for key in keys) for line in lines(run)]  # type: ignore[misc]
