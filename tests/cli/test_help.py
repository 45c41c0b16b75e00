"""Every command explains itself within 80 columns."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from coma.cli.main import COMMANDS, app

NAMES = [command.__name__ for commands in COMMANDS.values() for command in commands]
BENCHES = ["bench loader", "bench step", "bench epoch"]


def help_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout).splitlines()


@pytest.mark.parametrize("name", ["", "bench", *BENCHES, *NAMES], ids=lambda name: name or "coma")
def test_a_page_is_readable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of(name, monkeypatch)
    assert len(lines) > 8
    assert max(map(len, lines)) <= 80
    usage = next(line for line in lines if "Usage:" in line).split("coma", 1)[1]
    assert re.fullmatch(r"[A-Z|\[\]. ]*", usage.removeprefix(f" {name}"))
    page = "\n".join(lines)
    assert not re.search(r"<\w+>|\(looks\)|default: \(|\bOf ", page)


@pytest.mark.parametrize("name", [*BENCHES, *NAMES])
def test_every_option_is_explained_in_a_sentence(name: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    for parameter in command.params:
        if not parameter.hidden:
            assert re.match(r"(auto|full|[A-Z0-9]).*\.", parameter.help), parameter.name


def test_commands_are_grouped_and_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of("", monkeypatch)
    headings = [match[1] for line in lines if (match := re.match(r"╭─ ([\w ]+) ─", line))]
    assert headings == ["Options", *COMMANDS]
    assert list(COMMANDS) == ["Data", "Train", "Evaluate", "Use", "This machine"]
    for name in [*NAMES, "bench"]:
        (line,) = (line for line in lines if line.startswith(f"│ {name} "))
        assert line.rstrip("│ ").endswith(".")


def test_pages_import_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['coma', 'shard', '--help']\n"
    code += "from coma.cli.main import app\ntry:\n    app()\nfinally:\n"
    code += "    assert not {'torch', 'deepspeed', 'numpy', 'pyarrow', 'PIL'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_too_little_memory_on_a_gpu_is_one_line(coma, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("coma.cli.main.app", full)
    done = coma("knn")
    assert done.code == 1
    assert done.err.startswith("error: the GPU's memory does not hold it")
    assert done.err.count("\n") == 1
