"""A step's kernels compute the same bits each time; what the process does besides is left as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from devices import DEVICE, only_on_cuda
from torch import Tensor
from torch.nn import functional as F
from torch.utils import deterministic
from toy_engine import Toy, ds_config, engine_of, inputs

from coma.training.engine.deterministic import deterministic_kernels
from coma.training.engine.engine import dispose, set_learning_rate
from coma.training.engine.train_step import train_step
from coma.training.processes.world import joined


@pytest.fixture
def alone() -> Iterator[None]:
    with joined(None):
        yield


def settings() -> tuple[bool, bool]:
    filling: Any = deterministic
    return torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory


@pytest.mark.parametrize("mine", [False, True])
def test_the_mode_holds_for_the_block_alone(mine: bool) -> None:
    torch.set_deterministic_debug_mode(2 * mine)
    try:
        before = settings()
        with suppress(KeyError), deterministic_kernels():
            assert settings() == (True, False)
            raise KeyError
        assert settings() == before == (mine, True)
    finally:
        torch.set_deterministic_debug_mode(0)


def test_a_training_step_has_it_forward_and_backward(alone: None) -> None:
    seen: list[tuple[bool, bool]] = []

    class Watched(Toy):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(settings())
            loss = super().forward(x)
            loss.register_hook(lambda _: seen.append(settings()))
            return loss

    engine = engine_of(Watched(), ds_config("zero1"), accumulation=2)
    set_learning_rate(engine, 0.1)
    train_step(engine, [inputs()], 2)
    dispose(engine)
    assert seen == [(True, False)] * 4
    assert settings() == (False, True)


@pytest.mark.gpu_too
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(64, 16), (196, 300), (1024, 1024)])
def test_attention_has_the_same_gradients_each_time(dtype: torch.dtype, queries: int, keys: int) -> None:
    """Without the mode a GPU's differ from about 128 keys on."""
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 4, n, 32, generator=draw).to(DEVICE, dtype) for n in (queries, keys, keys)]
    weights = torch.randn(2, 4, queries, 32, generator=draw).to(DEVICE, dtype)
    found = []
    for _ in range(3):
        q, k, v = (tensor.clone().requires_grad_() for tensor in given)
        with deterministic_kernels():
            (F.scaled_dot_product_attention(q, k, v) * weights).sum().backward()
        found.append([q.grad, k.grad, v.grad])
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, found[0], strict=True))


@pytest.mark.gpu
@only_on_cuda
def test_a_process_that_has_used_its_gpu_before_trains_all_the_same() -> None:
    code = (
        "import os, torch\n"
        "os.environ.pop('CUBLAS_WORKSPACE_CONFIG', None)\n"
        "ones = torch.ones(2, 2, device='cuda')\n"
        "ones @ ones\n"
        "from coma.training.engine.deterministic import deterministic_kernels\n"
        "with deterministic_kernels():\n"
        "    assert float((ones @ ones).sum()) == 8\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
