"""The benchmark of other libraries' loaders measures those that are installed, in the command's own table."""

import json
import os
import sys
import tempfile
from itertools import islice

import pytest
from drawn import draw_images, shard_images

from benchmarks import loaders
from benchmarks.loaders import PEERS, Peer
from coma.bench import loader
from coma.bench.options import LoaderOptions
from coma.shards.manifest import read_manifest

OPTIONS = LoaderOptions(images=8, rounds=1, image_size=28, batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve images, JPEG and PNG, in a few shards."""
    folder = tmp_path_factory.mktemp("loaders")
    photos = draw_images(
        folder / "photos",
        12,
        classes=("class-0", "class-1"),
        size=(80, 60),
        name=lambda number: f"{number}.{'jpg' if number % 6 else 'png'}",
    )
    return shard_images(photos, folder / "shards", shard_bytes=20_000)


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.installed], ids=lambda peer: peer.package)
def test_peers_make_batches_of_the_size_asked_for(peer, data, tmp_path):
    sample, *_ = loader.copy_sample(read_manifest(data), tmp_path, OPTIONS)
    running = peer.load(sample)
    assert list(islice(running, 5)) == [4] * 5  # over the end of the sample
    running.close()


def test_all_are_measured_and_the_machine_is_left_as_it_was(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    theirs = [tmp_path / "data" / "kept", tmp_path / "chunks" / "kept"]  # litdata.optimize deletes these
    for file in theirs:
        file.parent.mkdir()
        file.touch()
    result, figures = loaders.measure(data, OPTIONS)
    assert figures["failed"] == {}
    assert set(result.loaders) >= {"coma", *(peer.name for peer in PEERS if peer.installed)}
    assert tempfile.tempdir == str(tmp_path)
    assert "TMPDIR" not in os.environ
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == set(theirs)


def broken(sample):
    raise OSError("libjpeg.so is missing")
    yield


def test_what_is_not_installed_or_fails_is_said(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loaders, "PEERS", (Peer("no-such-package", "x", broken), Peer("pytest", "broken peer", broken)))
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    command = ["loaders", str(data), "--images", "8", "--rounds", "1", "--image-size", "28"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(figures), "--plot", str(plot)])
    loaders.main()
    lines = capsys.readouterr().out.splitlines()
    assert "not installed: no-such-package; pip install them to compare" in lines
    assert "failed: broken peer: OSError: libjpeg.so is missing" in lines
    assert max(map(len, lines[1:])) <= 80
    result = json.loads(figures.read_text())
    assert result["not_installed"] == ["no-such-package"]
    assert "broken peer" not in result["ways"]
    assert plot.is_file()
