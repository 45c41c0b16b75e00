"""The coding of pixels in a manifest: read back as it was, also from mapped columns, and part of the fingerprint."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrays import drawn_array

from coma.errors import DataError
from coma.shards.images.pixel_counts import PixelCounts
from coma.shards.manifest import column_files, load_manifest
from coma.shards.manifest.manifest import schema


def coding(dtype="float32"):
    counts = PixelCounts(3, dtype)
    counts.add(drawn_array(3, dtype))
    return counts.coding()


def write(folder, pixels, **metadata):
    row = {"key": "0", "shard": "coma-train-000000.tar", "offset": 512, "size": 9, "width": 3, "height": 3}
    row |= {"format": "npy", "label": None, "xxh3_64": 1, "source": "a.npy"}
    of = schema(None, None, pixels)
    folder.mkdir()
    pq.write_table(
        pa.Table.from_pylist([row], of.with_metadata({**(of.metadata or {}), **metadata})), folder / "manifest.parquet"
    )
    return folder


def test_a_coding_is_read_back(tmp_path, monkeypatch):
    pixels = coding()
    folder = write(tmp_path / "train", pixels)
    assert load_manifest(folder).pixels == pixels
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(column_files, "LARGE_BYTES", 0)
    for _ in range(2):  # written, then mapped
        mapped = load_manifest(folder)
        assert mapped.pixels == pixels
        assert mapped.fingerprint == load_manifest(folder).fingerprint


def test_channels_and_type_make_another_fingerprint_and_statistics_do_not(tmp_path):
    pixels = coding()
    others = [None, replace(pixels, dtype="int16"), replace(pixels, mean=(0.0, 0.0, 0.0))]
    first, none, other, same = (
        load_manifest(write(tmp_path / str(number), each)).fingerprint for number, each in enumerate([pixels, *others])
    )
    assert len({first, none, other}) == 3
    assert same == first


@pytest.mark.parametrize("damage", [b"{}", b"no json", b'{"channels": 3}'])
def test_a_damaged_coding_is_named(tmp_path, damage):
    with pytest.raises(DataError, match="is damaged: it does not say what pixels its images have; shard again"):
        load_manifest(write(tmp_path / "train", None, **{"coma.pixels": damage}))


def test_quantiles_between_steps_are_on_a_line():
    pixels = coding("uint16")
    values = np.array(pixels.quantiles[1])
    assert pixels.quantile(1, 12.3) == pytest.approx(values[123])
    assert pixels.quantile(1, 12.34) == pytest.approx(values[123] + 0.4 * (values[124] - values[123]))
    assert pixels.quantile(1, 100) == pixels.greatest[1]
