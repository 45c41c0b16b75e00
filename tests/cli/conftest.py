"""Command lines as typed."""

import sys
from typing import NamedTuple

import pytest

from coma.cli.main import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def coma(monkeypatch, capsys):
    """Run a command line in this process."""

    def run(*arguments) -> Done:
        monkeypatch.setattr(sys, "argv", ["coma", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return Done(left.value.code or 0, *capsys.readouterr())

    return run
