"""`coma shard --channels`, `verify` and `inspect --show-channels` as typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from arrays import write_arrays
from PIL import Image


def test_the_road_of_samples_of_many_channels(tmp_path, monkeypatch, coma):
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("scenes"), channels=32, dtype="float32", per_class=2)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("scenes/a/photo.png")
    done = coma("shard", "scenes", "--channels", 32, "--workers", 1)
    assert done.code == 0, done.err
    assert "samples are of float32, as a/0.npy is; --dtype says otherwise" in done.err
    lines = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert lines["pixels"].strip() == "32 channels of float32"
    assert lines["set aside"].strip() == "1 (1 other channels): see quarantine.parquet"
    again = json.loads(coma("shard", "scenes", "--channels", 32, "--json").out)
    assert (again["pixels"]["channels"], len(again["pixels"]["mean"])) == (32, 32)

    assert coma("verify", "scenes-shards", "--decode").code == 0
    shown = coma("inspect", "scenes-shards", "--sheet", "sheet.png", "--show-channels", "4,3,2")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("channel ")) :]
    assert len([line for line in table if line.split()[0].isdigit()]) == 32
    assert len(np.unique(np.asarray(Image.open("sheet.png")).reshape(-1, 3), axis=0)) > 100
    described = json.loads(coma("inspect", "scenes-shards", "--json").out)
    assert described["splits"]["train"]["pixels"] == again["pixels"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--dtype", "uint16"], "error: --dtype uint16 only matters with --channels N"),
        (["--channels", "3", "--resize", "64"], "error: --resize 64 makes 8-bit JPEGs"),
        (["--channels", "40"], "40"),
    ],
)
def test_contradictions_are_one_line(tmp_path, coma, options, error):
    (tmp_path / "s").mkdir()
    done = coma("shard", tmp_path / "s", *options)
    assert done.code == 2
    assert error in done.err
    assert "Traceback" not in done.err


def test_channels_are_not_shown_of_photographs(tmp_path, monkeypatch, coma):
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("s/photo.png")
    assert coma("shard", "s", "--workers", 1).code == 0
    done = coma("inspect", "s-shards", "--sheet", "sheet.png", "--show-channels", "1,2,3")
    assert done.code == 2
    assert "the images are 8-bit RGB, and shown as they are" in done.err
    assert "--show-channels 1 only matters with a picture" in coma("inspect", "s-shards", "--show-channels", "1").err
