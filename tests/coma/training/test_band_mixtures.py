"""A run on two data sets of 13 bands."""

import json
from pathlib import Path

import numpy as np
import pytest
from bands import band_set
from drawn import sharded

from coma import pretrain
from coma.errors import DataError
from coma.shards.manifest import read_manifest

SMALL = {"model": "dyvit_nano", "image_size": 64, "batch_size": 4, "steps": 2, "seed": 1, "workers": 1}


def test_they_are_normalised_by_the_statistics_of_both(tmp_path: Path) -> None:
    a, b = band_set(tmp_path / "a", "tiff", count=8), band_set(tmp_path / "b", "tiff", count=12)
    pretrain([(a, 3), (b, 1)], out=tmp_path / "run", **SMALL)
    used = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["pixels"]
    means = [np.array(read_manifest(data).pixels.mean) for data in (a, b)]  # type: ignore[union-attr]
    assert np.allclose(used["mean"], 0.75 * means[0] + 0.25 * means[1])


def test_other_images_are_refused(tmp_path: Path) -> None:
    bands, photographs = band_set(tmp_path / "a", "tiff", count=4), sharded(tmp_path / "b", 4)
    with pytest.raises(DataError, match=r"b/data.* has 8-bit RGB images and .*a/data.* 13 channels of uint16"):
        pretrain([(bands, 1), (photographs, 1)], out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()
