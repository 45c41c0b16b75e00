"""Windows for the global heads of large images: what they see, what they leave alone, what they save."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import coma.model.attention
from coma.errors import UsageError
from coma.model.dyvit import DyViT
from coma.model.dyvit_variants import dyvit_base
from coma.model.layout import unit_windows

SHAPE: dict[str, Any] = {
    "dims": (16, 32, 32, 64),
    "depths": (1, 1, 5, 1),
    "head_dims": (8, 8, 16, 16),
    "heads": (((16, 1), (64, 2)), ((4, 2), (16, 1)), ((4, 1), (None, 3)), ((None, 4),)),
    "num_classes": 0,
    "patch_size": 2,  # units of 16 px
}


def make(window_units: int | None) -> DyViT:
    torch.manual_seed(0)
    return DyViT(**SHAPE, window_units=window_units).eval()


@pytest.mark.parametrize(("grid", "side"), [((5, 7), 3), ((4, 4), 2), ((1, 9), 4), ((3, 3), 7)])
def test_windows_hold_each_unit_once_and_neighbours_together(grid: tuple[int, int], side: int) -> None:
    units, sizes = unit_windows(grid, side)
    assert sorted(units.tolist()) == list(range(grid[0] * grid[1]))
    assert sum(sizes) == len(units)
    assert sizes == sorted(sizes, reverse=True)
    for window in torch.split(units, sizes):
        rows, columns = window // grid[1], window % grid[1]
        assert rows.max() - rows.min() < side
        assert columns.max() - columns.min() < side


def test_an_image_of_one_window_is_encoded_as_without() -> None:
    images = torch.randn(2, 3, 32, 48)
    assert torch.equal(make(None)(images), make(3)(images))


@pytest.mark.parametrize("size", [(64, 96), (48, 80)])
def test_features_lie_where_they_lie_without_windows(size: tuple[int, int]) -> None:
    """Stages 1 and 2 attend inside units: windows change nothing but the order in which they are computed."""
    images = torch.randn(2, 3, *size)
    plain = make(None).forward_intermediates(images, intermediates_only=True)
    windowed = make(2).forward_intermediates(images, intermediates_only=True)
    for a, b in zip(plain[:2], windowed[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain[2], windowed[2], atol=1e-3)
    assert plain[3].shape == windowed[3].shape


def test_windows_are_shut_in_all_blocks_but_every_fourth_and_the_last() -> None:
    model = make(2)
    outputs: list[Tensor] = []
    for block in model.stages[2].blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda module, given, out: outputs.append(out))
    images = torch.randn(1, 3, 64, 64, requires_grad=True)  # 4 x 4 units: four windows
    model(images)

    def seen_outside(block: int) -> float:
        """How much of another window the first one's tokens know after a block: they lie first."""
        (grad,) = torch.autograd.grad(outputs[block][:, : 4 * 4].square().sum(), images, retain_graph=True)
        assert grad[..., :32, :32].abs().sum() > 0
        grad[..., :32, :32] = 0
        return float(grad.abs().sum())

    assert [seen_outside(block) > 0 for block in range(5)] == [False, False, False, True, True]


def test_windows_save_most_of_the_attention_of_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def countable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    monkeypatch.setattr(coma.model.attention, "attend", countable)

    def macs(window_units: int | None) -> int:
        with torch.device("meta"):
            model = dyvit_base(num_classes=0, window_units=window_units)
            images = torch.zeros(1, 3, 800, 1344)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        return int(counter.get_total_flops()) // 2

    assert macs(7) < 0.72 * macs(None)


def test_a_window_of_no_units_is_refused() -> None:
    with pytest.raises(UsageError, match="window_units=0: a window has 1 unit a side or more"):
        make(0)
