"""The command's entry."""

import sys

import pytest

from coma.__main__ import run


class Interrupting:
    """Finds no module; whoever looks for the command is interrupted."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "coma.cli.main":
            raise KeyboardInterrupt


def test_ctrl_c_while_modules_are_loaded_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "coma.cli.main", raising=False)
    monkeypatch.setattr("sys.meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 130
