"""Streams of a manifest whose columns are mapped from files."""

from pathlib import Path

import pytest
import torch
from servers import serving

from coma.pipeline import Stream
from coma.shards.manifest import Manifest, column_files, read_manifest

OPTIONS = {"batch_size": 8, "image_size": 64, "unit_size": 16, "workers": 1, "seed": 4}


@pytest.mark.parametrize("remote", [False, True])
def test_a_stream_shows_the_same(
    data: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path))
    monkeypatch.setattr(column_files, "LARGE_BYTES", 0)
    with serving(data.parent) as server:
        place = f"{server.url}/{data.name}" if remote else data
        with Stream(place, **OPTIONS) as mapped, Stream(manifest, **OPTIONS) as in_memory:
            assert len(list(tmp_path.glob("columns/*/offset.npy"))) == 1
            assert mapped.manifest.fingerprint == manifest.fingerprint
            mapped.load_state_dict(in_memory.state_dict())
            for _ in range(12):
                ours, theirs = next(mapped), next(in_memory)
                assert torch.equal(ours.samples, theirs.samples)
                assert torch.equal(ours.images, theirs.images)
                assert torch.equal(ours.labels, theirs.labels)
                assert torch.equal(ours.units, theirs.units)
    assert read_manifest(data).fingerprint == manifest.fingerprint
