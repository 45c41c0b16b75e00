"""The documentation site: built without a warning and without a network, complete, and found by its search."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from coma.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command that CONTRIBUTING.md names; links and anchors that lead nowhere are warnings."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


SEARCHED = {
    "EMA",
    "gradient accumulation",
    "resume",
    "embedding",
    "multi-GPU",
    "notebook",
    "mixed precision",
    "out of memory",
    "Docker",
    "Slurm",
    "ONNX",
    "exit codes",
    "--micro-batch-size",
    "partition_units",
}


@pytest.mark.parametrize("words", sorted(SEARCHED))
def test_search_finds_a_section(words: str, site: Path) -> None:
    """By its heading, which the search puts first; an option by its name."""
    sections = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    of = "text" if words.startswith("--") else "title"
    assert [each["location"] for each in sections if words.lower() in each[of].lower()]


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\">]*)", page.read_text())
        assert not loaded, page


def commands(group: Any, name: str = "") -> dict[str, Any]:
    """Every command by its name, those of groups included."""
    found = {}
    for word, command in group.commands.items():
        path = f"{name} {word}".strip()
        found |= commands(command, path) if hasattr(command, "commands") else {path: command}
    return found


@pytest.mark.parametrize("name", commands(typer.main.get_command(app)))
def test_a_command_has_a_page_with_all_its_options(name: str, site: Path) -> None:
    page = (site / "commands" / f"coma-{name.replace(' ', '-')}" / "index.html").read_text()
    command = commands(typer.main.get_command(app))[name]
    for parameter in command.params:
        if not parameter.hidden and parameter.param_type_name == "option":
            assert all(re.search(rf"<code>{flag}\b", page) for flag in parameter.opts)
    assert "[dim]" not in page
    assert "exit-codes" in page


BLOCKS = [
    pytest.param(language, code, id=f"{page.relative_to(ROOT)}: {code.strip().splitlines()[0][:40]}")
    for page in PAGES
    for language, code in re.findall(r"^ *```(\w+)[^\n]*\n(.*?)^ *```", page.read_text(), re.S | re.M)
    if language != "sh"
]


@pytest.mark.parametrize(("language", "code"), BLOCKS)
def test_a_block_of_code_is_valid(language: str, code: str) -> None:
    """Shell lines are read, and most of them run, by `test_commands_in_docs.py`."""
    code = re.sub(r"^ {2,4}", "", code, flags=re.M) if code.startswith(" ") else code
    if language == "json":
        json.loads(code)
    elif language == "python":
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("coma"):
                assert {name.name for name in node.names} <= set(dir(import_module(str(node.module))))
    else:
        assert language in {"text", "yaml", "toml", "dockerfile"}
