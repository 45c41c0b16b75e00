"""The command as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from drawn import draw_images, shard_images
from typer.testing import CliRunner, Result

from coma.cli.main import app
from coma.errors import DataError, UsageError

SMALL = ["--model", "dyvit_tiny", "--image-size", "32", "--patch-size", "2", "--batch-size", "2"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one small sharded data set in it, to work in."""
    work = tmp_path / "work"
    work.mkdir()
    shard_images(draw_images(tmp_path / "images", 4), work / "images-shards")
    monkeypatch.chdir(work)
    return work


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pretrain", *arguments])


def test_help_fits_80_columns_and_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['coma', 'pretrain', '--help']\n"
    code += "from coma.cli.main import app\ntry:\n    app()\nfinally:\n"
    code += "    assert not {'torch', 'deepspeed', 'numpy'} & set(sys.modules)"
    environment = {"COLUMNS": "80", "TERM": "dumb", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    flags = "model method views start-size epochs steps batch-size base-lr seed out ds-config devices hostfile"
    flags += " save-every stop-after keep-last keep-every-epochs stuck-after resume compile json"
    for flag in flags.split():
        assert re.search(rf"--{flag}\b", done.stdout), flag
    for group in ("Data", "Model", "Optimisation", "Run", "Machine"):
        assert f" {group} " in done.stdout


def test_finds_the_data_trains_and_prints_one_json_object(here: Path) -> None:
    result = run(*SMALL, "--steps", "2", "--ds-config", "zero2.json", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["run"] == "runs/dyvit_tiny"
    assert (found["steps"], found["finished"]) == (2, True)
    for name in ("weights", "picture", "checkpoint", "report"):
        assert (here / found[name]).exists()
    assert sorted(path.name for path in here.iterdir()) == ["images-shards", "runs"]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (["--model", "dyvit_bse"], UsageError, "dyvit_base"),
        (["--ds-config", "zero7.json"], UsageError, "zero7"),
        (["--ds-config", "wrong.json"], UsageError, "gradient_cliping"),
        (
            ["--ds-config", "wrong.json", "--devices", "2", "--epochs", "1", "--steps", "1"],
            UsageError,
            "--epochs",
        ),
        (["--hostfile", "absent"], UsageError, "no such file"),
        (["--start-size", "24"], UsageError, "start size 24 is no multiple of the mask unit's 16 pixels"),
        (["--start-size", "48"], UsageError, "--start-size 48 is above --image-size 32"),
        (["--out", "images-shards"], UsageError, "not empty"),
        (["absent"], DataError, "no such folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    here: Path, arguments: list[str], error: type[Exception], named: str
) -> None:
    (here / "wrong.json").write_text('{"gradient_cliping": 1.0}')
    before = sorted(here.rglob("*"))
    result = run(*SMALL, *arguments)
    assert isinstance(result.exception, error)
    assert named in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""
    assert sorted(here.rglob("*")) == before


def test_unknown_choices_are_the_parsers_or_ours_to_refuse(here: Path) -> None:
    assert isinstance(run("--resume", "perhaps").exception, UsageError)
    assert run("--steps", "many").exit_code == 2
