"""Commands in messages survive a shell."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from coma.cli.main import COMMANDS
from coma.errors import shell_command

ROOT = Path(__file__).parents[2]
SOURCES = [file for folder in ("cli", "pipeline", "shards", "coma") for file in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("name", ["plain", "my photos", "it's", 'a"b', "$HOME", "a;b", "*", "été", "~", "#1"])
def test_a_shell_reads_a_command_as_it_was_meant(name: str) -> None:
    command = shell_command("printf", "%s|", Path(name), 3)
    read = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True).stdout.decode()
    assert read == f"{name}|3|"


@pytest.mark.parametrize("name", ["a b", "it's", "x\x1b[2J\\'\n", "caf\udce9", "\u202eexe", "$(id)"])
def test_a_name_with_control_characters_stays_on_one_line(name: str) -> None:
    words = shell_command("printf", "%s", name)
    assert words.isprintable()
    done = subprocess.run(
        ["bash", "-c", words], capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    assert done.stdout == os.fsencode(name)


def test_a_path_is_never_taken_for_an_option() -> None:
    assert shlex.split(shell_command("coma", "plan", Path("-x"), "--seed", "1")) == [
        "coma",
        "plan",
        "./-x",
        "--seed",
        "1",
    ]


def test_no_message_writes_a_value_into_a_command_without_quoting_it() -> None:
    """A command in an f-string holds words alone; one with values is made by `shell_command`."""
    commands = "|".join(command.__name__ for several in COMMANDS.values() for command in several)
    begun = re.compile(rf"(?:^|[^\w-])(?:coma (?:{commands}|bench)|torchrun|pip install|tensorboard) [^;:,.()`]*$")
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for text, value in pairwise(parts):
                if isinstance(value, ast.FormattedValue) and begun.search(str(getattr(text, "value", ""))):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno} {text.value!r}")
    assert found == []
