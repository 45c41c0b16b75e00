"""docs/shards.md names flags that exist, and its lines run."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from drawn import shard_images

from coma.shards.sources.listing import LAYOUTS

TEXT = (Path(__file__).parents[2] / "docs" / "shards.md").read_text()


def test_every_flag_exists(monkeypatch, capsys):
    from coma.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    known = ""
    for command in ("shard", "index", "inspect", "verify"):
        monkeypatch.setattr(sys, "argv", ["coma", command, "--help"])
        with pytest.raises(SystemExit):
            main()
        known += capsys.readouterr().out
    flags = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert len(flags) > 10
    assert {flag for flag in flags if not re.search(rf"{flag}\b", known)} == set()


def test_every_layout_is_there():
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.M) == list(LAYOUTS)


def test_other_readers(tmp_path, tree, monkeypatch):
    """All but `datasets`, which test_stock_readers.py runs in a process without the Hub."""
    shard_images(tree(tmp_path / "imagenet"), tmp_path / "imagenet-shards")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)
    names: dict[str, Any] = {}
    exec(code.replace("import datasets, timm", "import timm").partition("hub = ")[0], names)
    assert len(list(names["samples"])) == len(names["timms"]) == 18
