"""Runs from a file of options, and runs like another: --config, --print-config, --like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import environment
from drawn import draw_images, shard_images
from small_runs import course

from coma.runs.read import read_config

SMALL = "--model dyvit_nano --image-size 32 --patch-size 2 --batch-size 4 --workers 1 --steps 2 --seed 3".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return shard_images(draw_images(folder / "images", 12), folder / "images-shards")


@pytest.fixture
def here(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with one data set."""
    (tmp_path / "photos").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def pipe(text: str) -> Iterator[str]:
    """What a shell makes of `| coma … --config /dev/stdin`: a path that can be read once."""
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    try:
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_what_is_printed_is_the_same_run_from_a_pipe_and_from_its_record(here: Path, coma: Any) -> None:
    """To the last bit; and nothing is run where it is printed."""
    printed = coma("pretrain", "photos", *SMALL, "--print-config")
    assert (printed.code, printed.err) == (0, "")
    assert [path.name for path in here.iterdir()] == ["photos"]
    with pipe(printed.out) as path:
        assert coma("pretrain", "--config", path, "--print-config").out == printed.out
    assert coma("pretrain", "photos", *SMALL, "--out", "flags").code == 0
    with pipe(printed.out) as path:
        assert coma("pretrain", "--config", path, "--out", "piped").code == 0
    assert coma("pretrain", "--config", "flags/config.json", "--out", "recorded").code == 0
    assert course(here / "flags") == course(here / "piped") == course(here / "recorded")
    assert len(course(here / "flags")) == 2


def test_the_command_line_overrides_the_file(here: Path, coma: Any) -> None:
    (here / "run.yaml").write_text("epochs: 7\nmodel: dyvit_tiny\ncompile: true\nhostfile: hosts\nviews: 3\ndata: a\n")
    flags = ["--steps", "4", "--views", "4", "--devices", "2", "--no-compile"]
    done = coma("pretrain", "photos", "--config", "run.yaml", *flags, "--print-config")
    lines = dict(line.split(": ", 1) for line in done.out.splitlines() if line and line[0] != "#")
    assert (lines["model"], lines["views"], lines["compile"], lines["data"]) == ("dyvit_tiny", "4", "false", "photos")
    assert (lines["epochs"], lines["steps"]) == ("null", "4"), "which exclude each other"
    assert (lines["hostfile"], lines["devices"]) == ("null", "2")
    assert "epochs: 7" in coma("pretrain", "--config", "run.yaml", "--print-config").out


@pytest.mark.parametrize("command", ["pretrain", "plan", "finetune"])
def test_a_mistake_is_one_line_with_its_exit_code(command: str, here: Path, coma: Any) -> None:
    (here / "run.yaml").write_text("epochs: many\n")
    done = coma(command, "--config", "run.yaml")
    says = "error: run.yaml: epochs is 'many'; it must be a number, above 0 and at most 1000000.0\n"
    assert (done.code, done.out, done.err) == (2, "", says)


def test_a_contradiction_names_the_options_of_the_file(here: Path, coma: Any) -> None:
    (here / "run.yaml").write_text("cooldown-epochs: 7\n")
    done = coma("pretrain", "--config", "run.yaml", "--schedule", "cosine")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("add that, or leave it out (--cooldown-epochs: from run.yaml)\n")
    assert "run.yaml" not in coma("pretrain", "--config", "run.yaml", "--epochs", "0").err
    both = coma("pretrain", "--config", "run.yaml", "--like", "runs/a")
    assert both.err == "error: --config and --like exclude each other: give one\n"


def test_paths_are_those_of_the_current_folder_wherever_the_file_is(
    here: Path, coma: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "recipes").mkdir()
    (here / "recipes" / "run.yaml").write_text("data: photos\nout: ~/mine\n")
    monkeypatch.setenv("HOME", str(here))
    assert coma("pretrain", "--config", "recipes/run.yaml", *SMALL, "--stop-after", "1").code == 0
    assert sorted(path.name for path in here.iterdir()) == ["mine", "photos", "recipes"]


def test_a_required_argument_may_stand_in_the_file(here: Path, coma: Any) -> None:
    (here / "run.toml").write_text('source = "runs/a"\nepochs = 5\n')
    assert "\nsource: runs/a\n" in coma("finetune", "--config", "run.toml", "--print-config").out
    assert coma("finetune", "--print-config").code == 2


def test_a_fine_tuning_run_is_taken_after_as_well(here: Path, coma: Any) -> None:
    (here / "fine").mkdir()
    record = {
        "config": {"source": "runs/a", "rand_augment": 3, "mixup": 0.0, "epochs": 5.0},
        "resolved": {"data": "/d"},
    }
    (here / "fine" / "config.json").write_text(json.dumps(record))
    printed = coma("finetune", "--like", "fine", "--layer-decay", "0.75", "--batch-size", "8", "--print-config").out
    lines = dict(line.split(": ", 1) for line in printed.splitlines() if line and line[0] != "#")
    assert (lines["source"], lines["data"], lines["rand-augment"], lines["mixup"]) == ("runs/a", "/d", "3", "0.0")
    assert lines["out"] == "runs/fine-layer-decay-0.75-batch-size-8"
    done = coma("pretrain", "--like", "fine", "--epochs", "1")
    says = "error: fine/config.json has 'source', which is an option of coma finetune, not of coma pretrain\n"
    assert (done.code, done.err) == (2, says)
    assert coma("finetune", "--config", (here / "fine" / "config.json").as_uri(), "--print-config").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["-m", "coma"], ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "coma"]]
)
def test_processes_that_are_launched_have_the_files_options(launcher: list[str], here: Path, coma: Any) -> None:
    """By coma, for the file's `devices`, or by torchrun, whose processes each read the file."""
    (here / "run.yaml").write_text(coma("pretrain", "photos", *SMALL, "--devices", "2", "--print-config").out)
    command = [sys.executable, *launcher, "pretrain", "--config", "run.yaml", "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    content = read_config(here / "run")
    assert (content["config"]["devices"], content["resolved"]["world_size"]) == (2, 2)
    assert "\ndevices: 2\n" in coma("pretrain", "--like", "run", "--steps", "3", "--print-config").out


@pytest.mark.slow
def test_a_shell_pipes_a_run_into_another(here: Path, coma: Any) -> None:
    assert coma("pretrain", "photos", *SMALL, "--out", "flags").code == 0
    program = f"{sys.executable} -m coma pretrain"
    printed = f"{program} photos {' '.join(SMALL)} --print-config"
    line = f"{printed} | {program} --config /dev/stdin --out piped"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert course(here / "piped") == course(here / "flags")


def test_a_run_like_another_is_a_new_one_that_the_same_command_resumes(here: Path, coma: Any) -> None:
    """RUN is finished or not, in the folder that a new run would have by default: it is never written to."""
    assert coma("pretrain", "photos", *SMALL, "--stop-after", "1").code == 0
    run = Path("runs/dyvit_nano")
    before = snapshot(run)
    like = ["pretrain", "--like", str(run), "--steps", "4", "--weight-decay", "0.1"]
    assert coma(*like, "--stop-after", "3", "--json").code == 0
    new = Path("runs/dyvit_nano-steps-4-weight-decay-0.1")
    assert [line[0] for line in course(new)] == [1, 2, 3]
    done = coma(*like, "--json")
    assert (json.loads(done.out)["run"], json.loads(done.out)["finished"]) == (str(new), True)
    assert "resumed at step 4" in done.err
    assert [line[0] for line in course(new)] == [1, 2, 3, 4]
    assert snapshot(run) == before
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted([run.name, new.name])
    old, config = read_config(run)["config"], read_config(new)["config"]
    differing = {name for name in old if old[name] != config[name]}
    assert differing == {"steps", "weight_decay", "out", "stop_after", "data"}
    assert config["data"] == str(here / "photos")


def test_a_run_like_another_takes_no_folder_of_a_run_unasked(here: Path, coma: Any) -> None:
    (here / "run").mkdir()
    record = {"config": {"model": "dyvit_nano", "steps": 5, "out": "run", "devices": 2}, "resolved": {}}
    (here / "run" / "config.json").write_text(json.dumps(record))
    for words, says in (
        ([], "--like run with nothing that makes another run of it: give an option that does, such as --epochs"),
        (["--devices", "1"], "--like run with nothing that makes another run of it"),
        (["--seed", "1", "--out", "run/"], "--out run is the run that --like takes its options from: give another"),
        (["--seed", "1", "--out", here / "run"], "is the run that --like takes its options from: give another"),
    ):
        done = coma("pretrain", "--like", "run", *words)
        assert (done.code, done.out) == (2, "")
        assert says in done.err
    printed = coma("pretrain", "--like", "run", "--seed", "1", "--print-config").out
    assert "\nout: runs/run-seed-1\n" in printed
    assert "\ndevices: 2\n" in printed
    assert "\nout: b\n" in coma("pretrain", "--like", "run", "--out", "b", "--print-config").out
    done = coma("pretrain", "--like", "absent", "--seed", "1")
    assert (done.code, done.err) == (3, "error: absent is not a run folder: it has no config.json\n")
