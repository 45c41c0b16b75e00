"""Commands on a data set in a store: the same run as from a copy of it, each shard downloaded once, no secret told."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drawn import sharded
from servers import SECRET, Server, bucket_of, serving

from coma.shards.manifest import Manifest, read_manifest
from coma.training import PretrainConfig, pretrain

OPTIONS = {
    "model": "dyvit_nano",
    "image_size": 32,
    "patch_size": 2,
    "batch_size": 4,
    "steps": 4,
    "save_every": 2,
    "workers": 1,
}
RUN = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise in several shards and two splits."""
    drawing = {"classes": ("class-0", "class-1"), "name": "{}.png"}
    return sharded(tmp_path_factory.mktemp("sharded"), 40, shard_bytes=32768, val_fraction=0.3, **drawing)


@pytest.fixture(scope="module")
def manifest(data: Path) -> Manifest:
    found = read_manifest(data)
    assert len(found.shards) > 3
    return found


@pytest.fixture(scope="module")
def digests(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the batches of a run on the local copy."""
    run = tmp_path_factory.mktemp("local") / "run"
    pretrain(PretrainConfig(data=data, out=run, **OPTIONS))
    return digests_of(run)


@pytest.fixture(scope="module")
def store(data: Path) -> Iterator[tuple[Server, str]]:
    with bucket_of(data) as found:
        yield found


@pytest.fixture
def bucket(store: tuple[Server, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Server, str]:
    """The data set in a store, the cache empty."""
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    store[0].downloads.clear()
    return store


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "coma", *map(str, arguments)]


def typed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def digests_of(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["batch_digest"] for line in lines if "batch_digest" in line]


def assert_untold(secret: str, run: Path, *words: str) -> None:
    assert not any(secret in word for word in words)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl", "report.html"} <= {path.name for path in files}
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_run_from_a_bucket_is_the_local_one(
    bucket: tuple[Server, str], coma, tmp_path: Path, manifest: Manifest, digests: list[str]
) -> None:
    server, url = bucket
    run = tmp_path / "run"
    done = coma("pretrain", url, *RUN, "--out", run)
    assert done.code == 0, done.err
    assert digests_of(run) == digests
    assert server.downloads == dict.fromkeys(manifest.shards, 1)
    assert json.loads((run / "config.json").read_text())["resolved"]["data"] == url

    scored = coma("knn", run, "--json")
    assert scored.code == 0, scored.err
    found = json.loads(scored.out)
    assert (found["data"], found["tested_on"]) == (url, "val")
    again = coma("knn", run, url, "--json")
    assert json.loads(again.out)["knn"] == found["knn"]
    assert "data" not in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    step = coma("inspect", run, "--step", 3, "--json")
    assert step.code == 0, step.err
    assert_untold(SECRET, run, *done[1:], *scored[1:], *step[1:])


@pytest.mark.slow
def test_two_processes_from_a_bucket_download_each_shard_once(
    bucket: tuple[Server, str], tmp_path: Path, manifest: Manifest, digests: list[str]
) -> None:
    server, url = bucket
    run = tmp_path / "run"
    done = typed("pretrain", url, *RUN, "--devices", 2, "--out", run)
    assert done.returncode == 0, done.stderr
    assert digests_of(run) == digests
    assert server.downloads == dict.fromkeys(manifest.shards, 1)
    assert_untold(SECRET, run, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_run_killed_while_it_downloads_goes_on(
    bucket: tuple[Server, str], tmp_path: Path, manifest: Manifest, digests: list[str]
) -> None:
    server, url = bucket
    run, partial = tmp_path / "run", tmp_path / "cache/partial"
    server.always, server.trickle = "trickle", (4096, 0.5)
    try:
        with subprocess.Popen(command("pretrain", url, *RUN, "--out", run)) as process:
            while not any(path.stat().st_size for path in partial.glob("*/*")):
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
    finally:
        server.always = None
    assert list(partial.iterdir())
    done = typed("pretrain", url, *RUN, "--out", run)
    assert done.returncode == 0, done.stderr
    assert digests_of(run) == digests
    assert not list(partial.iterdir())
    cached = {path.name: path.read_bytes() for path in (tmp_path / "cache/shards").glob("*/*")}
    assert cached == {name: (manifest.folder / name).read_bytes() for name in manifest.shards}


def test_a_data_set_in_a_bucket_is_inspected_and_verified(bucket: tuple[Server, str], coma) -> None:
    _, url = bucket
    for name in ("inspect", "verify"):
        done = coma(name, url, "--json")
        assert done.code == 0, done.err
        assert SECRET not in done.out + done.err


def test_the_credentials_in_a_url_are_told_to_nobody(data: Path, coma, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    with serving(data.parent) as server:
        url = f"{server.url}/{data.name}".replace("//", "//someone:hush@")
        run = tmp_path / "run"
        commands = [
            ("pretrain", url, *RUN, "--out", run),
            ("knn", run, url),
            ("verify", url),
            ("inspect", url),
        ]
        done = [coma(*words) for words in commands]
        assert [each.code for each in done] == [0] * 4, done
        assert_untold("hush", run, *(word for each in done for word in each[1:]))
        failed = coma("pretrain", f"{url}/nowhere")
        assert failed.code == 3
        assert "hush" not in failed.err


def test_a_run_on_the_folder_of_one_split_stays_with_it(data: Path, coma, tmp_path: Path) -> None:
    run = tmp_path / "run"
    half, rest = (coma("pretrain", data / "val", *RUN, *more, "--out", run) for more in (["--stop-after", 2], []))
    assert (half.code, rest.code) == (0, 0), half.err + rest.err
    assert "resumed at step 3" in rest.err
    resolved = json.loads((run / "config.json").read_text())["resolved"]
    assert resolved["data"] == str(data / "val")
    assert resolved["fingerprint"] == read_manifest(data, "val").fingerprint
    step = coma("inspect", run, "--step", 4, "--json")
    assert step.code == 0, step.err
    assert coma("knn", run).code == 0
    assert coma("reconstruct", run, "--count", 2).code == 0


def test_a_split_by_itself_is_a_data_set(data: Path, coma, tmp_path: Path) -> None:
    """Copied without the folder around it, or made by `coma index`."""
    shutil.copytree(data / "train", tmp_path / "mine")
    run = tmp_path / "run"
    assert coma("pretrain", tmp_path / "mine", *RUN, "--out", run).code == 0
    scored = coma("knn", run, "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["data"] == str(tmp_path / "mine")
    assert coma("reconstruct", run, "--count", 2).code == 0
