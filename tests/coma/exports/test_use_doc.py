"""docs/use.md runs as it is written: its commands are commands, its Python runs on an export (of a small network)."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from typer.testing import CliRunner
from untrained_runs import write_run

from coma.cli.main import app

ROOT = Path(__file__).parents[3]
DOC = (ROOT / "docs" / "use.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOC, re.S | re.M)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the document's exports of a small run have been made, but for ONNX."""
    place = tmp_path_factory.mktemp("place")
    write_run(place / "runs" / "dyvit_base", patch_size=None)
    write_run(place / "coma-demo" / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for command in commands():
            if command[:2] == ["coma", "export"] and not {"--onnx", "--push"} & set(command):
                done = CliRunner().invoke(app, command[1:], catch_exceptions=False)
                assert done.exit_code == 0, done.output
        yield place


def test_loading_and_feature_maps(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    loading, maps = blocks("python")[:2]
    names: dict[str, Any] = {}
    exec(loading + maps, names)
    assert names["features"].shape == (1, 256)
    assert [tuple(x.shape[2:]) for x in names["maps"]] == [(96, 128), (48, 64), (24, 32), (12, 16)]


@pytest.mark.slow
def test_onnx_and_torch_export(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (command,) = (command for command in commands() if "--onnx" in command)
    assert CliRunner().invoke(app, command[1:], catch_exceptions=False).exit_code == 0
    loading, _, onnx, exporting = blocks("python")[:4]
    names: dict[str, Any] = {}
    exec(loading + onnx + exporting, names)
    assert names["features"].shape == (2, 256)
    assert names["last_map"].shape == (2, 256, 2, 2)
    assert (place / "dyvit.pt2").is_file()


def test_pushing_to_the_hub_is_a_call_that_timm_takes() -> None:
    """What it writes before it uploads is compared in test_export.py; the upload needs somebody's token."""
    (call,) = (node for node in ast.walk(ast.parse(blocks("python")[-1])) if isinstance(node, ast.Call))
    assert ast.unparse(call.func) == "timm.models.push_to_hf_hub"
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    inspect.signature(timm.models.push_to_hf_hub).bind("the model", ast.literal_eval(call.args[1]), **options)


def test_every_command_is_there() -> None:
    """Each with its options: none is misspelt."""
    for command in commands():
        if command[0] == "coma":
            shown = CliRunner().invoke(app, [command[1], "--help"], env={"COLUMNS": "200"}).output
            for option in (word for word in command if word.startswith("--")):
                assert option in shown
        elif command[0] == "python":
            assert (ROOT / command[1]).is_file()
        else:
            assert command in (["pip", "install", "coma-vision[onnx]"], ["hf", "auth", "login"])


def test_what_it_says_of_the_base() -> None:
    model = timm.create_model("dyvit_base", features_only=True)
    assert f"{model.feature_info.reduction()} {model.feature_info.channels()}" in DOC
