"""DeepSpeed's engine on a network of a few weights."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch
from devices import DEVICE
from torch import Tensor, nn

from coma.training.config.ds_config import DeepSpeedConfig, check_ds_config, read_ds_config
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import ResolvedRun, resolve
from coma.training.engine.engine import make_engine


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.ones(2, 4))
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def no_weight_decay(self) -> set[str]:
        return {"position"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.to(self.scale.device, self.linear.weight.dtype) + self.position[0])
        return (self.linear(x).float() * self.scale.float()).square().mean()


def engine_of(
    model: nn.Module,
    config: DeepSpeedConfig,
    accumulation: int = 1,
    clipping: float = 1.0,
    groups: Any = None,
) -> Any:
    content = {**config.content, "gradient_clipping": clipping, "gradient_accumulation_steps": accumulation}
    run = resolve(
        PretrainConfig(steps=9, batch_size=4 * accumulation),
        check_ds_config(content, config.source),
        data="d",
        fingerprint="f",
        samples_per_epoch=99,
        world_size=1,
        device=DEVICE,
        has_bf16=False,
    )
    return make_engine(model, run, groups=groups)


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))


def ds_config(stage: str) -> DeepSpeedConfig:
    """A packaged configuration, with stage 3's groups cut up as those of large networks are."""
    name, _, precision = stage.partition("-")
    content = read_ds_config(name).content
    zero = {**content["zero_optimization"]}
    if zero["stage"] == 3:
        zero["sub_group_size"] = 5
    sections = {
        "": {"bf16": {"enabled": False}},
        "bf16": {"bf16": {"enabled": True}},
        "fp16": {"fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 2}},
    }
    return check_ds_config({**content, "zero_optimization": zero, **sections[precision]}, stage)


def resolved_run(name: str, world_size: int = 1, device: str = "cuda", **content: Any) -> ResolvedRun:
    config = check_ds_config({**read_ds_config(name).content, **content}, name)
    machine = {"world_size": world_size, "device": device, "has_bf16": False}
    facts: dict[str, Any] = {"data": "data", "fingerprint": "f", "samples_per_epoch": 1000}
    return resolve(PretrainConfig(batch_size=64), config, **facts, **machine)


def skip_without(precision: str) -> None:
    """Skip a test in fp16 on a CPU that does not compute in it, where DeepSpeed refuses to start."""
    if precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
        pytest.skip("this CPU does not compute in fp16")
