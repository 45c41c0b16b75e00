from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coma.errors import UsageError
from coma.runs.read import current_names, read_config
from coma.training.config.finetune_options import FinetuneConfig
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
        ({"warmup_epochs": 1e300}, "--warmup-epochs is .*from 0 to 1000000"),
        ({"cooldown_epochs": 1e300, "schedule": "constant"}, "--cooldown-epochs is .*from 0 to 1000000"),
        ({"cooldown_epochs": 1.0}, "--cooldown-epochs goes with --schedule constant"),
        ({"schedule": "linear"}, "--schedule is 'linear'; it must be cosine or constant"),
        ({"extend": True, "steps": 9}, "--extend needs --out RUN"),
        ({"extend": True, "out": Path("run")}, "--extend needs .* --epochs or --steps"),
        ({"fault_budget": -1}, "--fault-budget is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**64}, "--seed is 18446744073709551616"),
        ({"steps": 10**20}, "--steps is 100000000000000000000"),
        ({"epochs": 1e300}, "--epochs is .*at most 1000000"),
        ({"method": "mea"}, "'mea'"),
        ({"log_to": "wandb,comet"}, "--log-to comet"),
        ({"evaluate_every": 0}, "--evaluate-every is 0"),
        ({"resume": "maybe"}, "auto or never"),
        ({"devices": 2, "hostfile": Path("hosts")}, "--hostfile"),
        ({"precision": "tf32"}, "--precision is 'tf32'; it must be fp32 or bf16 or fp16"),
        ({"grad_checkpointing": "1;2"}, "--grad-checkpointing is '1;2'; it must be none, all, or numbers of stages"),
        ({"grad_checkpointing": "0"}, "--grad-checkpointing is '0'"),
        ({"grad_checkpointing": ""}, "--grad-checkpointing is ''"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        PretrainConfig(**fields)
    assert "\n" not in str(caught.value)


def test_stages_to_recompute_are_none_all_or_a_list() -> None:
    stages = {
        text: PretrainConfig(grad_checkpointing=text).checkpointed_stages for text in ("none", "all", "2, 1", "3")
    }
    assert stages == {"none": (), "all": None, "2, 1": (1, 2), "3": (3,)}


def test_survives_being_written_and_read(tmp_path: Path) -> None:
    config = PretrainConfig(data=Path("a b"), out=Path("$HOME/{0..3}"), epochs=1.5, devices=2, patch_size=2)
    config.save(tmp_path / "config.json")
    assert PretrainConfig.load(tmp_path / "config.json") == config
    assert PretrainConfig.from_json(json.loads(json.dumps(PretrainConfig().to_json()))) == PretrainConfig()


def test_names_of_before_are_read(tmp_path: Path) -> None:
    config = FinetuneConfig(source=Path("runs/x"), ema_decay=0.5)
    written = config.to_json()
    older = {"average_decay": written.pop("ema_decay"), **written}
    assert FinetuneConfig.from_json(older) == config
    assert current_names({"--average-decay": 0.5, "--seed": 0}) == {"--ema-decay": 0.5, "--seed": 0}
    (tmp_path / "config.json").write_text(json.dumps({"config": older}))
    assert FinetuneConfig.from_json(read_config(tmp_path)["config"]) == config


def test_the_identity_is_that_of_run_folders_written_before() -> None:
    """These names and no others are compared with a run folder's."""
    # Older ones lack these (`coma.training.run_folder`).
    later = {
        "--mean": None,
        "--std": None,
        "--clip-percentile": None,
        "--flips": "horizontal",
        "--quarter-turns": False,
    }
    common = {"--image-size": 224, "--seed": 0, "--weight-decay": 0.05, **later}
    assert PretrainConfig().identity() == {
        **common, "--model": "dyvit_base", "--method": "coma", "--views": 2, "--start-size": None,
        "--patch-size": None, "--base-lr": 6e-4, "--crop-scale": 0.2,
    }  # fmt: skip
    assert FinetuneConfig(source=Path("x")).identity() == {
        **common, "--image-size": None, "--base-lr": 5e-4, "--layer-decay": 0.65, "--drop-path": 0.1,
        "--crop-scale": 0.08, "--rand-augment": 9, "--erasing": 0.25, "--mixup": 0.8, "--cutmix": 1.0,
        "--label-smoothing": 0.1, "--ema-decay": 0.0,
    }  # fmt: skip
