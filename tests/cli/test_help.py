"""Every command explains itself within 80 columns."""

import re

import pytest
import torch
from typer.testing import CliRunner

from coma.cli.main import app

COMMANDS = [
    "demo",
    "index",
    "shard",
    "inspect",
    "verify",
    "plan",
    "pretrain",
    "probe",
    "look",
    "knn",
    "reconstruct",
    "export",
    "finetune",
    "report",
    "doctor",
]


@pytest.mark.parametrize(
    "arguments",
    [[], ["bench", "loader"], ["bench", "step"], ["bench", "epoch"], *[[name] for name in COMMANDS]],
    ids=lambda a: " ".join(a) or "coma",
)
def test_help_fits_80_columns(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [*arguments, "--help"])
    assert shown.exit_code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout).splitlines()
    assert len(lines) > 8
    assert max(map(len, lines)) <= 80


def test_all_commands_are_there() -> None:
    assert sorted(
        command.callback.__name__ for command in app.registered_commands if command.callback
    ) == sorted(COMMANDS)


def test_too_little_memory_on_a_gpu_is_one_line(coma, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("coma.cli.main.app", full)
    done = coma("knn")
    assert done.code == 1
    assert done.err.startswith("error: the GPU's memory does not hold it")
    assert done.err.count("\n") == 1
