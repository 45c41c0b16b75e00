from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coma.errors import UsageError
from coma.training.config.options import PretrainConfig


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"epochs": 1.0, "steps": 1}, "--epochs and --steps"),
        ({"steps": 0}, "--steps is 0"),
        ({"epochs": 0.0}, "--epochs is 0"),
        ({"epochs": float("nan")}, "--epochs is nan"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"views": 0}, "--views is 0"),
        ({"base_lr": -1.0}, "--base-lr is -1"),
        ({"weight_decay": -0.1}, "--weight-decay is -0.1"),
        ({"warmup_epochs": float("inf")}, "--warmup-epochs is inf"),
        ({"seed": -1}, "--seed is -1"),
        ({"method": "mea"}, "'mea'"),
        ({"log_to": "wandb,comet"}, "--log-to comet"),
        ({"evaluate_every": 0}, "--evaluate-every is 0"),
        ({"resume": "maybe"}, "auto or never"),
        ({"devices": 2, "hostfile": Path("hosts")}, "--hostfile"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        PretrainConfig(**fields)
    assert "\n" not in str(caught.value)


def test_survives_being_written_and_read(tmp_path: Path) -> None:
    config = PretrainConfig(data=Path("a b"), out=Path("$HOME/{0..3}"), epochs=1.5, devices=2, patch_size=2)
    config.save(tmp_path / "config.json")
    assert PretrainConfig.load(tmp_path / "config.json") == config
    assert PretrainConfig.from_json(json.loads(json.dumps(PretrainConfig().to_json()))) == PretrainConfig()
