"""docs/stream.md runs as it is written (on a CPU, with data that exist)."""

import re
import textwrap
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).parents[2] / "docs" / "stream.md"


def blocks() -> list[str]:
    return re.findall(r"^ *```python\n(.*?)^ *```", DOCS.read_text(), re.S | re.M)


def test_the_loop_runs(data: Path) -> None:
    code = blocks()[0].replace("photos-shards", str(data)).replace('device="cuda"', 'device="cpu"')
    shapes: dict[str, Any] = {}
    exec(code.replace("batch_size=256", "batch_size=4") + "        break\n", shapes)
    batch = shapes["batch"]
    assert batch.images.shape == (4, 3, 224, 224)
    assert batch.units.shape == (4, 49)
    assert batch.view_sizes == (25, 24)


def test_the_masks_alone() -> None:
    names: dict[str, Any] = {}
    exec(blocks()[1], names)
    everything = torch.cat([names["first"], *names["others"]], dim=1)
    assert names["sizes"] == (49, 49, 49, 49)
    assert torch.equal(everything.sort(dim=1).values, torch.arange(196).expand(8, 196))


def test_the_training_loop_is_the_examples() -> None:
    example = (DOCS.parents[1] / "examples" / "plain_torch.py").read_text()
    assert textwrap.indent(blocks()[2], " " * 8) in example
