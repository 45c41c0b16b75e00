"""The benchmark of sharding runs and says what it promises; its figures are not for a test."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


def test_the_benchmark_gives_every_ratio(tmp_path):
    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8)).save(file, "JPEG")
        (tmp_path / f"pictures/{i}.jpg").write_bytes(file.getvalue())
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
