"""What was trained at any ZeRO stage is exported alike: the features are those of the network in the trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from toy_engine import engine_of

from coma.exports.export import export_run
from coma.runs.read import build_model
from coma.training.config.ds_config import read_ds_config
from coma.training.config.options import PretrainConfig
from coma.training.engine import checkpoint
from coma.training.engine.checkpoint import TrainingState
from coma.training.engine.engine import dispose, full_weights, optimizer_step, set_learning_rate
from coma.training.processes.world import World, joined


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with joined(None) as alone:
        yield alone


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_features_are_the_trainers_at_every_stage(world: World, stage: str, tmp_path: Path) -> None:
    config = PretrainConfig(model="dyvit_nano", image_size=32, patch_size=2).to_json()
    torch.manual_seed(0)
    engine = engine_of(build_model(config), read_ds_config(stage))
    images, units = torch.randn(4, 3, 32, 32), torch.rand(4, 4).argsort(dim=1)
    try:
        before = engine(images, units).item()
        for _ in range(3):
            set_learning_rate(engine, 1e-3)
            engine.backward(engine(images, units))
            optimizer_step(engine)
        assert engine(images, units).item() < before
        engine.eval()
        with torch.no_grad():
            expected = engine.module.backbone(images).clone()
        state = TrainingState(step=3, fingerprint="f", seed=0, samples=12, world_size=1)
        checkpoint.save(engine, world, tmp_path / "run", state, full_weights(engine))
    finally:
        dispose(engine)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": config}))
    export_run(tmp_path / "run", tmp_path / "out")
    exported = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(exported(images), expected, atol=1e-5, rtol=0)
