"""The backbone: costs, shapes, and what a view may know of another."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import coma.model.attention
from coma.errors import UsageError
from coma.model.dyvit import DyViT
from coma.model.dyvit_variants import dyvit_base, dyvit_large, dyvit_small, dyvit_tiny
from coma.pipeline.views import view_sizes

NARROW: dict[str, Any] = {
    "dims": (16, 32, 32, 64),
    "depths": (1, 1, 2, 1),
    "head_dims": (8, 8, 16, 16),
    "heads": (((16, 1), (64, 2)), ((4, 2), (16, 1)), ((4, 1), (None, 3)), ((None, 4),)),
    "num_classes": 0,
}
SMALL_IMAGES: dict[str, Any] = {**NARROW, "patch_size": 2}  # units of 16 px
LARGE_UNITS: dict[str, Any] = {**NARROW, "patch_size": 2, "unit_size": 32}  # 256, 64, 16, 4 tokens a unit


def make(**kwargs: Any) -> DyViT:
    """A DyViT whose gates and positions are not at their quiet start."""
    torch.manual_seed(0)
    model = DyViT(**kwargs).eval()
    for name, parameter in model.named_parameters():
        if "gate" in name or "position" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def laid(batch: int, units: int) -> Tensor:
    return torch.rand(batch, units, generator=torch.Generator().manual_seed(1)).argsort(dim=1)


CASES = [
    pytest.param(NARROW, (64, 96), id="patch4"),
    pytest.param(SMALL_IMAGES, (48, 32), id="patch2"),
    pytest.param(LARGE_UNITS, (64, 96), id="unit32"),
    pytest.param({"dims": (64, 128, 256, 512), "depths": (1, 1, 6, 1), "num_classes": 0} | {
        "heads": (((16, 1), (64, 1)), ((4, 2), (16, 2)), ((4, 1), (None, 3)), ((None, 8),)),
    }, (64, 96), id="tiny"),
]  # fmt: skip


# -- costs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "parameters", "macs"),
    [
        (dyvit_tiny, 8.0e6, 1.47e9),
        (dyvit_small, 26.7e6, 4.08e9),
        (dyvit_base, 42.6e6, 6.66e9),
        (dyvit_large, 94.9e6, 16.7e9),
    ],
)
def test_parameters_and_multiply_adds(
    variant: Any, parameters: float, macs: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def countable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # the counter knows no fused kernel of the CPU
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    monkeypatch.setattr(coma.model.attention, "attend", countable)
    with torch.device("meta"):
        model = variant(num_classes=0)
        images = torch.empty(1, 3, 224, 224)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.005)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.01)


# -- views -----------------------------------------------------------------------


@pytest.mark.parametrize(("config", "size"), CASES)
@pytest.mark.parametrize("views", [2, 3, 4])
def test_a_view_encoded_alone_is_its_slice_of_the_joint_pass(
    config: dict[str, Any], size: tuple[int, int], views: int
) -> None:
    model, images = make(**config), torch.randn(2, 3, *size)
    grid = model.unit_grid(*size)
    units = laid(2, grid[0] * grid[1])
    sizes = view_sizes(units.shape[1], views)
    joint = model.encode(images, units, sizes)
    start = 0
    for n in sizes:
        alone = model.encode(images, units[:, start : start + n])
        for stage, (a, j) in enumerate(zip(alone, joint, strict=True)):
            t = model.stage_tokens[stage]
            assert a.shape == (2, n * t, model.stage_dims[stage])
            torch.testing.assert_close(a, j[:, start * t : (start + n) * t], atol=1e-5, rtol=1e-4)
        start += n


@pytest.mark.parametrize(("config", "size"), CASES)
def test_a_view_knows_nothing_of_what_it_hides(config: dict[str, Any], size: tuple[int, int]) -> None:
    model, images = make(**config), torch.randn(1, 3, *size, requires_grad=True)
    grid = model.unit_grid(*size)
    units = laid(1, grid[0] * grid[1])
    sizes = view_sizes(units.shape[1], 2)
    joint = model.encode(images, units, sizes)
    first = sum(f[:, : sizes[0] * t].square().sum() for f, t in zip(joint, model.stage_tokens, strict=True))
    (grad,) = torch.autograd.grad(first, images)
    by_unit = model.unit_patches(grad)[0]  # [U, T, P]
    assert (by_unit[units[0, sizes[0] :]] == 0).all()
    assert (by_unit[units[0, : sizes[0]]].abs().amax(dim=(1, 2)) > 0).all()


def test_inside_a_view_units_do_see_each_other() -> None:
    model, images = make(**NARROW), torch.randn(1, 3, 64, 64, requires_grad=True)
    last = model.encode(images)[-1]
    (grad,) = torch.autograd.grad(last[0, 0].square().sum(), images)
    assert (model.unit_patches(grad)[0].abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize(("config", "size"), CASES)
def test_one_view_in_any_order_is_the_plain_backbone(config: dict[str, Any], size: tuple[int, int]) -> None:
    model, images = make(**config), torch.randn(2, 3, *size)
    grid = model.unit_grid(*size)
    units = laid(2, grid[0] * grid[1])
    for stage, (a, b) in enumerate(zip(model.encode(images, units), model.encode(images), strict=True)):
        by_unit = b.reshape(2, units.shape[1], model.stage_tokens[stage], -1)
        reordered = torch.stack([by_unit[i, units[i]] for i in range(2)]).flatten(1, 2)
        torch.testing.assert_close(a, reordered, atol=1e-4, rtol=1e-4)


def test_order_inside_a_view_does_not_matter() -> None:
    model, images, sizes = make(**NARROW), torch.randn(1, 3, 96, 96), (5, 4)
    units = laid(1, 9)
    shuffle = torch.tensor([3, 0, 4, 1, 2, 8, 6, 5, 7])  # inside each view
    a = model.encode(images, units, sizes)[-1]
    b = model.encode(images, units[:, shuffle], sizes)[-1]
    torch.testing.assert_close(a[:, shuffle], b, atol=1e-5, rtol=1e-4)


def test_position_is_known_from_stage_three_on() -> None:
    model = make(**NARROW)
    images = torch.randn(1, 3, 32, 32).repeat(1, 1, 2, 2)  # four equal units
    features = model.encode(images)
    for stage, x in enumerate(features):
        by_unit = x[0].unflatten(0, (4, -1))
        same = torch.allclose(by_unit[0], by_unit[3], atol=1e-5)
        assert same == (stage < 2)


def test_views_must_add_up() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        make(**NARROW).encode(torch.randn(1, 3, 64, 64), laid(1, 4), (2, 1))


# -- images -----------------------------------------------------------------------


def test_any_size_that_units_fill() -> None:
    model = make(**NARROW | {"num_classes": 7})
    assert model.forward_features(torch.randn(1, 3, 64, 160)).shape == (1, 2, 5, 64)
    assert model(torch.randn(2, 3, 160, 32)).shape == (2, 7)


def test_features_lie_where_the_image_has_them() -> None:
    model, images = make(**NARROW), torch.zeros(1, 3, 64, 96)
    marked = images.clone()
    marked[:, :, 44:48, 72:76] = 3.0  # one patch in the unit at row 1, column 2
    for s, (a, b) in enumerate(
        zip(
            model.forward_intermediates(images, indices=[0, 1], intermediates_only=True),
            model.forward_intermediates(marked, indices=[0, 1], intermediates_only=True),
            strict=True,
        )
    ):
        changed = (a != b).any(dim=1)[0].nonzero()
        stride = 4 * 2**s
        assert changed.amin(dim=0).ge(torch.tensor([32, 64]) // stride).all()
        assert changed.amax(dim=0).lt(torch.tensor([64, 96]) // stride).all()
        own = torch.tensor([44 // stride, 72 // stride])
        assert (changed == own).all(dim=1).any()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"img_size": 100}, "100x100 is not a multiple of the 32-pixel mask unit"),
        ({"patch_size": 4, "unit_size": 16}, "mask unit of 16 pixels with a patch of 4"),
        ({"unit_size": 48}, "mask unit of 48 pixels"),
        (NARROW | {"heads": (((48, 1),), *NARROW["heads"][1:])}, "window of 48 tokens does not fit the 64"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        DyViT(**NARROW | kwargs)
    assert "\n" not in str(caught.value)


def test_three_stages_take_units_of_four_patches() -> None:
    """For small images; the views of one forward are still blind to each other."""
    heads = (((4, 1), (16, 1)), ((4, 1),), ((None, 2),))
    shape = {"dims": (16, 32, 64), "depths": (1, 1, 2), "head_dims": (16, 32, 32), "heads": heads}
    model = make(img_size=16, patch_size=1, unit_size=4, num_classes=0, **shape)
    images, units = torch.randn(2, 3, 16, 16), torch.stack([torch.randperm(16) for _ in range(2)])
    joint = model.encode(images, units, (4, 12))
    assert [x.shape[1:] for x in joint] == [(256, 16), (64, 32), (16, 64)]
    torch.testing.assert_close(model.encode(images, units[:, :4])[-1], joint[-1][:, :4])
    with pytest.raises(UsageError, match=r"a unit's side is 4 patches \(4 pixels\), or 8, 16"):
        DyViT(img_size=16, patch_size=1, unit_size=2, **shape)


def test_image_that_units_do_not_fill_is_refused() -> None:
    with pytest.raises(UsageError, match="64x80 is not a multiple"):
        make(**NARROW)(torch.randn(1, 3, 64, 80))


# -- training -----------------------------------------------------------------------


def test_every_parameter_learns_and_checkpointing_changes_nothing() -> None:
    model, images = make(**NARROW | {"num_classes": 3}).train(), torch.randn(2, 3, 64, 64)
    model(images).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for grad in grads.values())
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[name])


def test_drop_path_acts_in_training_only() -> None:
    model, images = make(**NARROW, drop_path_rate=0.5), torch.randn(4, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_no_batch_norm_and_start_of_the_weights() -> None:
    model = DyViT(**NARROW)
    kinds = {type(module).__name__ for module in model.modules()}
    assert not any("BatchNorm" in kind for kind in kinds)
    gates = [p for name, p in model.named_parameters() if "gate" in name]
    assert len(gates) == 4  # stage 4 has one group
    assert not any(p.any() for p in gates)
    assert 0.01 < model.patch_embed.position.std() < 0.03


def test_half_precision_on_a_cpu() -> None:
    model, images = make(**NARROW), torch.randn(2, 3, 64, 64)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(images).float(), expected, atol=0.1, rtol=0.1)
    out = model.bfloat16()(images)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.15, rtol=0.1)
