"""Embedding: vectors that are timm's on the stream's pixels, the same table whatever happened on the way to it."""

import contextlib
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from drawn import draw_images, shard_images
from servers import serving
from untrained_runs import write_run

import coma
from coma.embedding import parts as parts_module
from coma.embedding.table import METADATA_KEY
from coma.errors import DataError, UsageError
from coma.exports.backbone import load_backbone
from coma.pipeline import Stream
from coma.shards.manifest import read_manifest

MODEL = "test_resnet"
"""A small network of timm, for images of 160 pixels; its weights are random, always the same."""
FEW = {"untrained": True, "batch_size": 4, "image_size": 64}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 22 images of several shapes, two of them damaged, and one that is no image."""
    folder = tmp_path_factory.mktemp("sources") / "photographs"
    draw_images(folder, 22, classes=("ants", "bees"), size=lambda i: (80 + i, 90), smooth=True)
    (folder / "ants" / "broken.jpg").write_bytes((folder / "ants" / "0.jpg").read_bytes()[:700])
    (folder / "bees" / "text.png").write_text("no picture")
    (folder / "bees" / "notes.txt").write_text("passed over")
    return folder


@pytest.fixture(scope="module")
def shards(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_images(photographs, tmp_path_factory.mktemp("shards") / "data", val_fraction=0.3, shard_bytes=8000)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "coma")
    monkeypatch.setattr(parts_module, "PART_IMAGES", 8)


def table(out: Path) -> Any:
    return pq.read_table(out)


def on_the_streams_pixels(data: Path, split: str) -> np.ndarray[Any, Any]:
    """Vectors of timm's model by a bare loop over the stream."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=1000).eval()
    model.reset_classifier(0)
    options = load_backbone(MODEL, untrained=True, image_size=64).stream_options()
    with Stream(data, split=split, batch_size=5, training=False, **options) as stream, torch.no_grad():
        return torch.cat([model(batch.images) for batch in stream]).numpy()


def test_vectors_of_shards_are_those_of_timm_on_the_same_pixels(shards: Path, tmp_path: Path) -> None:
    result = coma.embed(MODEL, shards, tmp_path / "features.parquet", **FEW)
    rows = table(result.out)
    expected = np.concatenate([on_the_streams_pixels(shards, split) for split in ("train", "val")])
    np.testing.assert_allclose(result.vectors(), expected, rtol=0, atol=1e-5)
    manifests = [read_manifest(shards, split) for split in ("train", "val")]
    assert rows["key"].to_pylist() == [key for m in manifests for key in m.keys(range(len(m)))]
    assert result.paths() == [path for m in manifests for path in m.sources(range(len(m)))]
    assert rows["label"].to_pylist() == [int(label) for m in manifests for label in m.label]
    assert rows["label_name"].to_pylist() == [path.split("/")[0] for path in result.paths()]
    assert result.splits == {m.split: len(m) for m in manifests}
    settings = json.loads(rows.schema.metadata[METADATA_KEY])
    assert (settings["model"], settings["weights"], settings["mean"]) == (MODEL, "untrained", [0.5] * 3)
    assert settings["versions"]["coma"]
    assert list(tmp_path.iterdir()) == [result.out]  # nothing else is left
    assert coma.embed(MODEL, shards, tmp_path / "val.parquet", split="val", **FEW).splits == {"val": len(manifests[1])}


def test_images_that_are_not_sharded_give_the_same_vectors(photographs: Path, shards: Path, tmp_path: Path) -> None:
    """A folder, a tar, a list and rows of parquet; what is damaged is set aside by name, as it was of the shards."""
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(photographs, "photographs")
    paths = sorted(str(path.relative_to(photographs)) for path in photographs.rglob("*.*g"))
    (tmp_path / "list.txt").write_text("\n".join(paths))
    images = [{"image": {"bytes": (photographs / path).read_bytes(), "path": path}} for path in paths]
    pq.write_table(pa.Table.from_pylist(images), tmp_path / "rows.parquet")
    sharded = coma.embed(MODEL, shards, tmp_path / "sharded.parquet", **FEW)
    expected = {Path(path).name: vector for path, vector in zip(sharded.paths(), sharded.vectors(), strict=True)}

    def name(path: str) -> str:
        """The file's name; rows of parquet are called by their numbers."""
        stem = Path(path).stem
        return Path(paths[int(stem)] if len(stem) == 9 else path).name

    for source in (photographs, tmp_path / "packed.tar", tmp_path / "list.txt", tmp_path / "rows.parquet"):
        root = photographs if source.suffix == ".txt" else None
        result = coma.embed(MODEL, source, tmp_path / f"{source.name}-out.parquet", root=root, **FEW)
        assert (result.images, result.set_aside) == (22, 2)
        for path, vector in zip(result.paths(), result.vectors(), strict=True):
            np.testing.assert_allclose(vector, expected[name(path)], rtol=0, atol=1e-6)
        aside = {name(row["path"]): row for row in pq.read_table(result.quarantine).to_pylist()}
        assert aside.keys() == {"broken.jpg", "text.png"}
        assert aside["broken.jpg"]["reason"].startswith("truncated")
        assert aside["broken.jpg"]["bytes"] == 700
        assert "notes.txt" not in str(result.paths())
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_sample_of_a_shard_is_set_aside_and_no_other_shown(
    photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shard_images(photographs, tmp_path / "data")
    whole = coma.embed(MODEL, data, tmp_path / "whole.parquet", **FEW)
    manifest = read_manifest(data)
    for sample in (3, 10):
        path = manifest.folder / manifest.shards[int(manifest.shard_id[sample])]
        raw = bytearray(path.read_bytes())
        raw[int(manifest.offset[sample]) + 300] ^= 0xFF
        path.write_bytes(raw)
    result = coma.embed(MODEL, data, tmp_path / "damaged.parquet", **FEW)
    assert result.paths() == [path for row, path in enumerate(whole.paths()) if row not in (3, 10)]
    np.testing.assert_allclose(result.vectors(), np.delete(whole.vectors(), (3, 10), axis=0), rtol=0, atol=1e-6)
    aside = pq.read_table(result.quarantine).to_pylist()
    assert [row["path"] for row in aside] == [whole.paths()[3], whole.paths()[10]]
    assert all("hash" in row["reason"] for row in aside)
    assert "2 images are set aside" in caplog.text


_KILLED = """
import os, signal, sys
import coma
from coma.embedding import command, parts
print("ready", flush=True)
parts.PART_IMAGES = 8
limit = int(sys.argv[3])
def progress(stage, done, total):
    if stage == "features" and done >= limit:
        os.kill(os.getpid(), signal.SIGKILL)
coma.embed(sys.argv[1], sys.argv[2], "features.parquet", untrained=True, batch_size=4, image_size=64, progress=progress)
"""


@pytest.mark.parametrize("kind", ["photographs", pytest.param("shards", marks=pytest.mark.slow)])
def test_a_killed_command_goes_on_and_its_table_is_the_same(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source: Path = request.getfixturevalue(kind)
    undisturbed = coma.embed(MODEL, source, tmp_path / "undisturbed.parquet", **FEW)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, MODEL, str(source), "13"], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    out = tmp_path / "features.parquet"
    assert not out.exists()
    done: list[int] = []
    with pytest.raises(UsageError, match=r"holds an unfinished run with image size 64.*--overwrite"):
        coma.embed(MODEL, source, out, **{**FEW, "image_size": 96})
    coma.embed(MODEL, source, out, progress=lambda stage, n, total: done.append(n), **FEW)
    assert "resuming: 1 of" in caplog.text
    assert done[done.index(8) :][0] == 8  # what was done is not done again
    assert out.read_bytes() == undisturbed.out.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_any_number_of_processes_writes_the_same_bytes(photographs: Path, tmp_path: Path) -> None:
    alone = coma.embed(MODEL, photographs, tmp_path / "alone.parquet", **FEW)
    shared = coma.embed(MODEL, photographs, tmp_path / "shared.parquet", devices=2, device="cpu", **FEW)
    assert shared.out.read_bytes() == alone.out.read_bytes()
    assert shared.quarantine.read_bytes() == alone.quarantine.read_bytes()


def test_a_table_that_is_whole_is_not_made_again_and_another_is_not_replaced(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "features.parquet"
    first = coma.embed(MODEL, shards, out, **FEW)
    before = out.stat().st_mtime_ns
    again = coma.embed(MODEL, shards, out, **FEW)
    assert "complete already" in caplog.text
    assert out.stat().st_mtime_ns == before
    assert (again.images, again.splits, again.images_per_s) == (first.images, first.splits, None)
    with pytest.raises(UsageError, match=r"features.parquet is of dtype float32: .* --overwrite to replace it"):
        coma.embed(MODEL, shards, out, half=True, **FEW)
    assert coma.embed(MODEL, shards, out, half=True, overwrite=True, **FEW).vectors().dtype == np.float16
    other = tmp_path / "other.parquet"
    other.write_text("mine")
    with pytest.raises(UsageError, match=r"was not written by `coma embed`"):
        coma.embed(MODEL, shards, other, **FEW)
    assert other.read_text() == "mine"


def test_half_is_the_rounded_vector(shards: Path, tmp_path: Path) -> None:
    whole, half = (
        coma.embed(MODEL, shards, tmp_path / f"{half}.parquet", half=half, **FEW).vectors() for half in (False, True)
    )
    assert np.array_equal(half, whole.astype(np.float16))


def test_a_number_beyond_float16_is_not_made_infinite(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coma.embedding.job.vectors", lambda backbone, images: torch.full((len(images), 96), 1e5))
    with pytest.raises(UsageError, match=r"--half: a feature of 100,000 is beyond float16"):
        coma.embed(MODEL, shards, tmp_path / "half.parquet", half=True, **FEW)


def test_patch_maps_are_kept_in_rows_and_columns(shards: Path, tmp_path: Path) -> None:
    result = coma.embed(MODEL, shards, tmp_path / "maps.parquet", patches=True, **FEW)
    maps = table(result.out)["patches"].combine_chunks().to_numpy_ndarray()  # [N, h, w, C]
    assert maps.shape == (result.images, *result.map_shape)
    assert result.map_shape == (2, 2, result.channels)  # at stride 32
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), result.vectors(), rtol=0, atol=1e-5)
    finer = coma.embed(MODEL, shards, tmp_path / "finer.npy", patches=True, stride=16, **FEW)
    array = np.load(finer.out)
    assert array.shape == (result.images, 4, 4, result.channels)
    assert array.dtype == np.float32
    assert finer.table == tmp_path / "finer.parquet"
    assert np.array_equal(finer.vectors(), result.vectors())
    with pytest.raises(UsageError, match=r"--stride 5 does not divide images of 64 pixels"):
        coma.embed(MODEL, shards, tmp_path / "none.parquet", patches=True, stride=5, **FEW)


def test_an_npy_has_its_paths_beside_it(shards: Path, tmp_path: Path) -> None:
    result = coma.embed(MODEL, shards, tmp_path / "features.npy", **FEW)
    expected = coma.embed(MODEL, shards, tmp_path / "expected.parquet", **FEW)
    assert np.array_equal(np.load(result.out), expected.vectors())
    assert np.array_equal(result.vectors(), expected.vectors())
    assert "vector" not in table(result.table).column_names
    assert result.paths() == expected.paths()


def test_a_run_is_embedded_as_it_is_scored(shards: Path, tmp_path: Path) -> None:
    """Vectors are the features that `coma knn` classifies by."""
    from coma.evaluation.features import extract
    from coma.runs.read import load_autoencoder

    run = write_run(tmp_path / "run")
    result = coma.embed(run, shards, tmp_path / "features.parquet", split="train", batch_size=4)
    autoencoder = load_autoencoder(run)
    with Stream(shards, batch_size=4, training=False, **autoencoder.stream_options()) as stream:
        expected = extract(autoencoder.backbone, stream)
    np.testing.assert_allclose(result.vectors(), expected.x.numpy(), rtol=0, atol=1e-6)
    assert result.step == 7


def test_what_cannot_be_embedded_is_an_error_of_one_line(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    with pytest.raises(UsageError, match=r"no such file or folder"):
        coma.embed(MODEL, tmp_path / "nowhere", out, **FEW)
    with pytest.raises(UsageError, match=r"--split test: .* has train, val"):
        coma.embed(MODEL, shards, out, split="test", **FEW)
    with pytest.raises(UsageError, match=r"--layout is for images that are not sharded"):
        coma.embed(MODEL, shards, out, layout="flat", **FEW)
    with pytest.raises(UsageError, match=r"end it in .parquet or .npy"):
        coma.embed(MODEL, shards, tmp_path / "features.csv", **FEW)
    with pytest.raises(UsageError, match=r"timm has no weights for 'test_resnet_x'|no run, export or timm model"):
        coma.embed("test_resnet_x", shards, out)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "one.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 1 images of .*bad can be embedded, such as one.jpg"):
        coma.embed(MODEL, bad, out, **FEW)
    assert not out.exists()


def test_two_commands_do_not_write_one_table(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"

    def second(stage: str, done: int, total: int | None) -> None:
        if done == total:
            with pytest.raises(UsageError, match=r"another process is writing"):
                coma.embed(MODEL, shards, out, **FEW)

    coma.embed(MODEL, shards, out, progress=second, **FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["features.parquet"]


def test_shards_at_a_url_give_the_same_bytes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    here = coma.embed(MODEL, shards, tmp_path / "here.parquet", **FEW)
    with serving(shards.parent) as server:
        there = coma.embed(MODEL, f"{server.url}/{shards.name}", tmp_path / "there.parquet", **FEW)
        with pytest.raises(UsageError, match=r"holds no shards .* are read from this machine only"):
            coma.embed(MODEL, f"{server.url}/elsewhere", tmp_path / "other.parquet", **FEW)
    assert there.out.read_bytes() == here.out.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_command_that_is_killed_again_and_again_writes_the_same_bytes(photographs: Path, tmp_path: Path) -> None:
    """At instants that no one chose: while images are checked or embedded, while the table is made."""
    undisturbed = coma.embed(MODEL, photographs, tmp_path / "undisturbed.parquet", **FEW)
    command = [sys.executable, "-c", _KILLED, MODEL, str(photographs), "1000"]
    chance = np.random.default_rng(0)
    for kill in range(20):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0, 1 + kill))  # more and more time, on whatever machine
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert (tmp_path / "features.parquet").read_bytes() == undisturbed.out.read_bytes()
    assert not list(tmp_path.glob(".*"))
