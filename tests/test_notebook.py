"""The notebook in examples/: its cells run and show pictures, and nothing of the machine is left in it."""

import ast
import json
from pathlib import Path
from typing import Any

import notebooks
import pytest


def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, on a small scale; the last expression of a cell is what a notebook shows."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = []
    for cell in notebooks.load(TRAIN=16, STEPS=1).cells:
        if cell.cell_type == "code":
            *statements, last = ast.parse(cell.source).body
            exec(compile(ast.Module(statements, []), "cell", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), names)
    assert [type(each).__name__ for each in shown] == [
        *("ShardResult", "Image", "TrainingResult", "PictureResult", "ScoreResult", "float", "Image"),
    ]


@pytest.mark.slow
def test_it_runs_headless(tmp_path: Path) -> None:
    """In a kernel of its own, as Jupyter does it."""
    notebook = notebooks.load(TRAIN=16, STEPS=2)
    notebooks.execute(notebook, tmp_path)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in json.dumps(output) for output in shown) >= 4


def test_it_is_small_and_holds_no_paths_of_a_machine() -> None:
    text = notebooks.NOTEBOOK.read_text()
    assert len(text) < 600_000
    for place in ("/tmp/", "/home/", "/root/"):
        assert place not in text
