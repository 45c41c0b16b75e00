"""Functions take what their commands take: names, defaults, types; and refuse the rest in one line."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub
import typer

import coma
from coma.cli.main import app
from coma.errors import ComaError, DataError, UsageError
from coma.shards.files import folder_at

ROOT = Path(__file__).parents[3]
FUNCTIONS = ["shard", "index", "verify", "pretrain", "finetune", "probe", "knn", "embed", "reconstruct", "export"]


def test_the_package_shows_these_and_no_helpers() -> None:
    assert dir(coma) == sorted(["CoMA", "DyViT", "Stream", *FUNCTIONS])
    assert set(coma.__all__) == set(dir(coma))


def test_looking_at_a_function_imports_nothing_heavy() -> None:
    code = "import coma, inspect, sys; [inspect.signature(getattr(coma, each)) for each in sys.argv[1:]]; "
    code += "assert not {'torch', 'numpy', 'pyarrow', 'timm', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, *FUNCTIONS], check=True, timeout=60)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keywords_are_the_commands_options(name: str) -> None:
    command: Any = typer.main.get_command(app)
    options = {
        each.name if each.param_type_name == "argument" else each.opts[0].removeprefix("--").replace("-", "_"): each
        for each in command.commands[name].params
        if not each.hidden and each.name not in ("json", "help", "print_config")
    }
    parameters = dict(inspect.signature(getattr(coma, name)).parameters)
    progress = parameters.pop("progress", None)
    assert (progress is None) == (name in ("reconstruct", "export"))
    assert set(parameters) == set(options)
    for keyword, parameter in parameters.items():
        option = options[keyword]
        positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert positional == (option.param_type_name == "argument")
        assert parameter.default == (inspect.Parameter.empty if option.required else option.default)
        assert f"\n    {keyword}: " in getattr(coma, name).__doc__


def test_the_stub_is_current() -> None:
    assert stub.STUB.read_text() == stub.stub(), "run: python tests/helpers/stub.py"


@pytest.mark.slow  # of mypy, 20 s
def test_a_type_checker_knows_every_keyword(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "import coma\n"
        "shards = coma.shard(Path('photos'), resize=256, shard_bytes='1GB')\n"
        "preview = coma.shard('photos', dry_run=True)\n"
        "run = coma.pretrain(shards, epochs=3, progress=lambda now: print(now.loss))\n"
        "score: float = coma.probe(run, protocol='mae').accuracy\n"
        "reveal_type(preview)\n"
        "coma.pretrain(epoch=3)\n"
        "coma.pretrain(epochs='3')\n"
        "coma.pretrain(method='simclr')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", script.name]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, check=False
    )
    said = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(script.name) and ("error" in line or "Revealed" in line)
    ]
    places = [":".join(line.split(":")[1:3]) for line in said]
    assert places == ["7: note", "8: error", "9: error", "10: error"], said
    assert "DryRunResult" in said[0]


def test_a_wrong_keyword_is_refused_with_the_right_one() -> None:
    with pytest.raises(TypeError, match=r"coma.pretrain\(\) .*'epoch': did you mean 'epochs'\?"):
        coma.pretrain(epoch=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"coma.finetune\(\) missing a required argument: 'source'"):
        coma.finetune()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="too many positional"):
        coma.knn("a", "b", 3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; it must be at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; give a whole number"),
        ({"epochs": "3"}, "epochs is '3'; give a number"),
        ({"compile": "no"}, "compile is 'no'; give True or False"),
        ({"model": None}, "model is None; give a text or a path"),
        ({"out": 3}, "out is 3; give a text or a path"),
        ({"method": "simclr"}, "--method is 'simclr'; it must be coma or independent or mae"),
        ({"micro_batch_size": "most"}, "--micro-batch-size is 'most'; it must be at least 1, or auto"),
    ],
)
def test_a_wrong_value_is_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        coma.pretrain("photos-shards", **keywords)
    assert str(caught.value) == message


def test_numbers_may_be_numpys_and_paths_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("coma.training.pretrain", lambda options, progress: made.append(options) or {"run": "r"})
    with pytest.raises(TypeError):  # of a result that lacks most
        coma.pretrain(tmp_path, out="run", steps=np.int64(3), base_lr=np.float32(0.5), compile=np.True_)  # type: ignore[arg-type]
    (options,) = made
    assert options.data == str(tmp_path)
    assert options.out == Path("run")
    assert (type(options.steps), type(options.base_lr), type(options.compile)) == (int, float, bool)


def test_a_note_gives_the_keywords_for_flags() -> None:
    with pytest.raises(UsageError, match="--epochs and --steps exclude each other") as caught:
        coma.pretrain("photos-shards", epochs=1, steps=1)
    assert caught.value.__notes__ == ["in Python: epochs= for --epochs, steps= for --steps"]


def test_what_the_system_says_is_an_error_of_coma(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        coma.shard(tmp_path / "nowhere")
    with pytest.raises(DataError):
        coma.probe(tmp_path)
    with pytest.raises(DataError, match="memory://bucket/none"):
        coma.verify(folder_at("memory://bucket/none"))  # as `out` of a result is, in a store
    (tmp_path / "file").touch()
    with pytest.raises(ComaError, match="file"):
        coma.verify(tmp_path / "file" / "below")
