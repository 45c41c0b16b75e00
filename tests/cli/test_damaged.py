"""Data that break under the commands: a line in the ledger, and past the budget one line and exit code 3."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
from commands import SMALL
from drawn import draw_images, shard_images

from coma.shards.manifest import Manifest, read_manifest

IMAGES = 24

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of two classes."""
    images = draw_images(tmp_path_factory.mktemp("images"), IMAGES, classes=("class0", "class1"), size=(48, 40))
    return shard_images(images, tmp_path_factory.mktemp("sharded") / "photos-shards")


@pytest.fixture
def photos(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be damaged, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(good, tmp_path / good.name))


def flip(manifest: Manifest, samples: range) -> list[str]:
    """Damage 40 bytes in the middle of each image, and return their keys."""
    for sample in samples:
        path = manifest.folder / manifest.shards[int(manifest.shard_id[sample])]
        raw = bytearray(path.read_bytes())
        middle = int(manifest.offset[sample] + manifest.size[sample] // 2)
        raw[middle : middle + 40] = bytes(byte ^ 0xFF for byte in raw[middle : middle + 40])
        path.write_bytes(raw)
    return manifest.keys(samples)


def ledger(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


def test_forty_flipped_bytes_cost_one_sample_and_no_run(photos: Path, coma) -> None:
    (key,) = flip(read_manifest(photos), range(7, 8))
    done = coma("pretrain", *SMALL, "--epochs", "1", "--out", "run")
    assert done.code == 0, done.err
    (line,) = ledger(Path("run"))
    assert line["key"] == key
    assert line["substitute"] != key
    assert str(line["reason"]).startswith("hash ")
    assert f"sample {key} of coma-train-000000.tar: hash" in done.err


def test_past_the_budget_training_ends_with_exit_code_3(photos: Path, coma) -> None:
    keys = flip(read_manifest(photos), range(11))
    done = coma("pretrain", *SMALL, "--epochs", "3", "--out", "run")
    assert done.code == 3
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("error: 11 different samples of ")
    assert "fault_budget=10" in last
    assert last.endswith(f"coma verify {photos}")
    assert {line["key"] for line in ledger(Path("run"))} == set(keys)
    assert "Traceback" not in done.err


def test_a_shard_cut_short_under_a_run_ends_it_with_exit_code_3(photos: Path, coma) -> None:
    def cut() -> None:
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.01)
        os.truncate(photos / "train" / "coma-train-000000.tar", 4096)

    metrics, thread = Path("run/metrics.jsonl").absolute(), Thread(target=cut, daemon=True)
    thread.start()
    done = coma("pretrain", *SMALL, "--epochs", "100", "--out", "run")
    assert done.code == 3
    assert "coma-train-000000.tar is cut short" in done.err.strip().splitlines()[-1]


@pytest.mark.slow
def test_one_of_two_processes_that_meets_too_much_ends_both_with_exit_code_3(photos: Path) -> None:
    """Only that one knows why; the other waits for it in a sum."""
    flip(read_manifest(photos), range(IMAGES))
    command = [sys.executable, "-m", "coma", "pretrain", *SMALL, *["--epochs", "9", "--out", "run", "--devices", "2"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 3
    assert "could not be read or decoded" in done.stderr or "none of the samples tried" in done.stderr
    assert "Traceback" not in done.stderr


def test_scoring_ends_with_exit_code_3_as_well(photos: Path, coma) -> None:
    assert coma("pretrain", *SMALL, "--steps", "1", "--out", "run").code == 0
    manifest = read_manifest(photos)
    flip(manifest, range(11))
    for command in ("knn", "probe"):
        done = coma(command, "run", photos)
        assert done.code == 3
        assert done.err.strip().splitlines()[-1].startswith("error: 11 different samples of ")
    (manifest.folder / manifest.shards[0]).unlink()
    for command in ("knn", "probe"):
        done = coma(command, "run", photos)
        assert done.code == 3
        assert "coma-train-000000.tar cannot be read" in done.err.strip().splitlines()[-1]
