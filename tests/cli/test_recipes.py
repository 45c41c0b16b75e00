"""Each file of recipes/ trains as `coma pretrain --config`, with what a small machine cannot do overridden."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from drawn import draw_images, shard_images
from small_runs import lines
from untrained_runs import write_run

from coma.recipes import packaged
from coma.runs.read import read_config
from coma.training import PretrainConfig
from coma.training.config.config_file import read_options

RECIPES = packaged()
OVERRIDDEN = {
    "photographs": {"model": "dyvit_nano", "batch_size": 2},
    "cifar10": {"batch_size": 4},
    "imagenet-base": {"model": "dyvit_nano", "batch_size": 2, "devices": 1},
    "continued": {"model": "dyvit_nano", "batch_size": 2},
}
"""A GPU's batch and the networks of 27 and 43 M parameters are too much for this suite, and 8 GPUs for a CPU."""


def train(name: str, overridden: dict[str, Any], tmp_path: Path, monkeypatch: Any, coma: Any) -> None:
    """Take two steps by the command in the recipe's comment."""
    monkeypatch.chdir(tmp_path)
    line = next(line for line in RECIPES[name].read_text().splitlines() if "coma pretrain" in line)
    words = shlex.split(line.removeprefix("#"))[1:]
    shard_images(draw_images(tmp_path / "images", 16, classes=("a", "b")), tmp_path / words[1])
    recipe = read_options(str(RECIPES[name]), PretrainConfig)
    if "init" in recipe:
        network = PretrainConfig(**{**recipe, **overridden})
        write_run(tmp_path / "earlier", model=network.model, image_size=network.image_size, patch_size=None)
        assert coma("export", "earlier", network.init, "--with-decoder").code == 0
    flags = [word for key, value in overridden.items() for word in (f"--{key.replace('_', '-')}", value)]
    done = coma(*words, "--steps", "2", "--out", "run", "--workers", "1", *flags)
    assert done.code == 0, done.err
    assert [each["step"] for each in lines(tmp_path / "run") if "loss" in each] == [1, 2]
    config = PretrainConfig.from_json(read_config(tmp_path / "run")["config"])
    for key in recipe.keys() - {*overridden, "epochs"}:
        assert str(getattr(config, key)) == str(recipe[key]), key
    assert {key: getattr(config, key) for key in overridden} == overridden


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name: str, tmp_path: Path, monkeypatch: Any, coma: Any) -> None:
    train(name, OVERRIDDEN[name], tmp_path, monkeypatch, coma)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_its_own_network(name: str, tmp_path: Path, monkeypatch: Any, coma: Any) -> None:
    overridden = {key: value for key, value in OVERRIDDEN[name].items() if key != "model"}
    train(name, {**overridden, "batch_size": 2}, tmp_path, monkeypatch, coma)


def test_those_that_are_promised_are_there_and_begin_with_what_they_are_for() -> None:
    assert RECIPES.keys() == OVERRIDDEN.keys()
    for name, path in RECIPES.items():
        text = path.read_text()
        assert text.startswith("# ")
        assert re.search(rf"^#     coma pretrain \S+ --config {name}\b", text, re.M)
        assert max(map(len, text.splitlines())) <= 120
