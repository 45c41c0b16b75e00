"""The benchmark of sharding runs and says what it promises; its figures are not for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import draw_images

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_gives_every_ratio(tmp_path):
    draw_images(tmp_path / "pictures", 20, size=(32, 24))
    command = [sys.executable, "-m", "benchmarks.sharding", str(tmp_path / "pictures")]
    done = subprocess.run(
        [*command, "--images", "20", "--rounds", "1", "--json", str(tmp_path / "figures.json")],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 20
    assert set(figures["bars"]) < set(figures["ratios"])
    assert all(ratio > 0 for ratio in figures["ratios"].values())
    assert figures["workers"]["cpu_s_per_wall_s"] > 0
    assert not list(tmp_path.glob("coma-bench-*"))
