"""FSDP2 takes the backbone and the whole of the method, wrapped as its users wrap networks."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

import coma

WRAPPED = {
    "blocks": ("Block", "CrossBlock"),
    "stages": ("Stage", "CrossBlock"),
    "backbone": ("DyViT",),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return coma.CoMA("dyvit_nano", patch_size=2, img_size=64)


def shard(model: nn.Module, kinds: tuple[str, ...], mesh: Any, **options: Any) -> nn.Module:
    for module in [module for module in model.modules() if type(module).__name__ in kinds]:
        fully_shard(module, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    register_fsdp_forward_method(model.backbone, "encode_patches")  # what pre-training calls instead of `forward`
    return model


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_the_sharded_method_learns_the_same(wrapped: str, dtype: torch.dtype | None, one_process: Any) -> None:
    images, units = torch.randn(2, 3, 64, 64), torch.rand(2, 16).argsort(dim=1)
    plain = network()
    sharded = shard(network(), WRAPPED[wrapped], one_process, mp_policy=MixedPrecisionPolicy(param_dtype=dtype))
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(images, units)
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
    tolerance = 1e-5 if dtype is None else 2e-2
    for (name, a), b in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(
            b.full_tensor(), a, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_it_is_initialised_after_it_was_sharded(one_process: Any) -> None:
    with torch.device("meta"):
        model = network()
    shard(model, WRAPPED["blocks"], one_process)
    model.to_empty(device="cpu")
    model.init_weights()
    assert torch.isfinite(model(torch.randn(2, 3, 64, 64), torch.rand(2, 16).argsort(dim=1)))
