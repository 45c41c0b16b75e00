"""CoMA: who predicts what from what, the loss, and the pictures."""

from typing import Any

import pytest
import torch
from predictions import predict_pixels
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import coma.model.attention
import coma.model.decoder
from coma import CoMA
from coma.errors import UsageError
from coma.model.autoencoder import normalise_patches
from coma.model.dyvit import DyViT
from coma.pipeline.views import partition_units

NARROW: dict[str, Any] = {
    "dims": (16, 32, 32, 64),
    "depths": (1, 1, 2, 1),
    "head_dims": (8, 8, 16, 16),
    "heads": (((16, 1), (64, 2)), ((4, 2), (16, 1)), ((4, 1), (None, 3)), ((None, 4),)),
    "num_classes": 0,
}


def make(img_size: Any = (64, 96), backbone: dict[str, Any] | None = None, **kwargs: Any) -> CoMA:
    torch.manual_seed(0)
    return CoMA(DyViT(**NARROW | (backbone or {})), img_size=img_size, **kwargs)


def batch(model: CoMA, images: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    units = partition_units(torch.arange(images), torch.zeros(images).long(), seed=0, units=model.units)
    return torch.randn(images, 3, *model.img_size), units


def hidden_pixels(model: CoMA, x: Tensor, units: Tensor, sizes: tuple[int, ...], view: int) -> Tensor:
    """Of x [1, 3, H, W], the values in the units that the view does not see."""
    start = sum(sizes[:view])
    seen = units[0, start : start + sizes[view]]
    keep = torch.ones(units.shape[1], dtype=torch.bool)
    keep[seen] = False
    return model.backbone.unit_patches(x)[0][keep]


# -- costs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("dyvit_tiny", 1.54e9),
        ("dyvit_small", 4.34e9),
        ("dyvit_base", 6.86e9),
        ("dyvit_large", 17.2e9),
    ],
)
def test_multiply_adds_of_a_training_pass(name: str, macs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def countable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # the counter knows no fused kernel of the CPU
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    monkeypatch.setattr(coma.model.attention, "attend", countable)
    monkeypatch.setattr(coma.model.decoder, "attend", countable)
    with torch.device("meta"):
        model = CoMA(name)
        images, units = torch.empty(1, 3, 224, 224), torch.empty(1, 49, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(images, units)
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.01)


# -- who predicts what -------------------------------------------------------------


@pytest.mark.parametrize("views", [2, 3, 4, 7])
def test_each_unit_is_predicted_by_every_other_view(views: int) -> None:
    model = make((224, 224), views=views)
    units = partition_units(torch.arange(2), torch.zeros(2).long(), seed=0, units=49)
    everyone = torch.arange(49).expand(2, 49)
    for times in range(1, views):
        model.predict = times
        visible, hidden = model.split_units(units)
        assert torch.equal(torch.cat(visible, dim=1), units)
        assert torch.equal(torch.cat(hidden, dim=1).sort(dim=1).values, everyone.repeat_interleave(times, 1))
        for seen, unseen in zip(visible, hidden, strict=True):
            assert all(set(s).isdisjoint(u) for s, u in zip(seen.tolist(), unseen.tolist(), strict=True))
        for seen, unseen in zip(*model.split_units(units, predict_all=True), strict=True):
            assert torch.equal(torch.cat([seen, unseen], dim=1).sort(dim=1).values, everyone)


def test_a_view_predicts_those_that_follow_it() -> None:
    units = torch.arange(7).flip(0)[None]
    visible, hidden = make((32, 224), views=3, predict=1).split_units(units)
    assert [view.tolist() for view in visible] == [[[6, 5, 4]], [[3, 2]], [[1, 0]]]
    assert [view.tolist() for view in hidden] == [[[3, 2]], [[1, 0]], [[6, 5, 4]]]


@pytest.mark.parametrize(("views", "predict"), [(2, None), (3, None), (4, None), (4, 1), (3, 2), (5, 2)])
def test_predictions_and_their_order(views: int, predict: int | None) -> None:
    model = make(views=views, predict=predict)
    images, units = batch(model)
    predicted = predict_pixels(model, images, units)
    times = views - 1 if predict is None else predict
    assert predicted.shape == (2, times * 6 * 4, 16 * 16 * 3)
    # The loss is the mean over them against the right targets: recomputed here view by view, patch by patch.
    raster = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1)  # [B, h, w, 16, 16, 3]
    errors, q = [], 0
    for hidden in model.split_units(units)[1]:
        for unit in hidden.T:  # [B]
            for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                rows, columns = unit // 3 * 2 + y, unit % 3 * 2 + x
                target = raster[torch.arange(2), rows, columns]
                cells = target.unfold(1, 4, 4).unfold(2, 4, 4)  # [B, 4, 4, 3, 4, 4]: patches of 4 px
                z = [(r, c) for R in (0, 2) for C in (0, 2) for r in (R, R + 1) for c in (C, C + 1)]
                pixels = torch.cat([cells[:, r, c].permute(0, 2, 3, 1).flatten(1) for r, c in z], dim=1)
                std, mean = torch.std_mean(pixels, dim=1, keepdim=True)
                errors.append((predicted[:, q] - (pixels - mean) / (std**2 + 1e-6).sqrt()).square())
                q += 1
    assert q == predicted.shape[1]
    torch.testing.assert_close(model(images, units), torch.stack(errors).mean())


# -- who sees what -----------------------------------------------------------------


@pytest.mark.parametrize(("views", "predict"), [(2, None), (3, None), (4, None), (4, 1)])
@pytest.mark.parametrize("backbone", [{}, {"patch_size": 2}, {"patch_size": 2, "unit_size": 32}])
def test_a_view_predicts_without_seeing_what_it_hides(
    views: int, predict: int | None, backbone: dict[str, Any]
) -> None:
    size = (32, 48) if backbone == {"patch_size": 2} else (64, 96)
    model = make(size, backbone, views=views, predict=predict)
    images, units = batch(model, images=1)
    images.requires_grad_()
    visible, hidden = model.split_units(units)
    predicted = predict_pixels(model, images, units)
    predictions = torch.split(predicted, [model.tokens * view.shape[1] for view in hidden], dim=1)
    memory = model.decoder.memory(model.backbone.encode(images, units, model.view_sizes))
    memories = torch.split(memory, [model.tokens * size for size in model.view_sizes], dim=1)
    for view, outputs in enumerate(zip(predictions, memories, strict=True)):
        for out in outputs:
            (grad,) = torch.autograd.grad(out.square().sum(), images, retain_graph=True)
            assert (hidden_pixels(model, grad, units, model.view_sizes, view) == 0).all()
            seen = model.backbone.unit_patches(grad)[0][visible[view][0]]
            assert (seen.abs().amax(dim=(1, 2)) > 0).all()


def test_hidden_pixels_change_no_prediction_and_visible_ones_do() -> None:
    model = make(views=2).eval()
    images, units = batch(model, images=1)
    before = predict_pixels(model, images, units)
    changed = images.clone()
    patches = model.backbone.unit_patches(changed)
    unit = int(units[0, -1])  # seen by the second view alone
    row, column = 32 * (unit // 3), 32 * (unit % 3)
    changed[:, :, row : row + 32, column : column + 32] += 1
    assert not torch.equal(patches, model.backbone.unit_patches(changed))
    after = predict_pixels(model, changed, units)
    first = 3 * 4  # the first view's queries: three hidden units
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.allclose(before[:, first:], after[:, first:], atol=1e-3)


def test_the_decoder_sees_the_last_stages_alone_if_told_so() -> None:
    model = make(memory_stages=2)
    images, units = batch(model)
    features = model.backbone.encode(images, units, model.view_sizes)
    memory = model.decoder.memory(features)
    noise = [torch.randn_like(stage) for stage in features]
    assert torch.equal(memory, model.decoder.memory([*noise[:2], *features[2:]]))
    for stage in (2, 3):
        changed = [noise[s] if s == stage else x for s, x in enumerate(features)]
        assert not torch.allclose(memory, model.decoder.memory(changed), atol=0.1)


def test_order_inside_views_changes_nothing() -> None:
    model = make((96, 96), views=2)
    images, units = batch(model)
    shuffle = torch.tensor([3, 0, 4, 1, 2, 8, 6, 5, 7])
    torch.testing.assert_close(model(images, units[:, shuffle]), model(images, units))


def test_views_are_alike() -> None:
    """Swapping two views of equal size leaves the loss as it is."""
    model = make(views=2)
    images, units = batch(model)
    torch.testing.assert_close(model(images, units.roll(3, dims=1)), model(images, units))


def test_uneven_views_in_half_precision() -> None:
    model = make((96, 96), views=4)
    assert model.view_sizes == (3, 2, 2, 2)
    images, units = batch(model)
    expected = model(images, units)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images, units)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert model.bfloat16()(images, units).item() == pytest.approx(expected.item(), rel=0.02)


# -- learning ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs", [{"views": 2}, {"views": 4, "predict": 1}, {"memory_stages": 2}, {"memory_stages": 1}]
)
def test_every_parameter_gets_a_gradient(kwargs: dict[str, Any]) -> None:
    model = make(**kwargs)
    model(*batch(model)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_few_images_can_be_learned_by_heart() -> None:
    model = make((64, 64), views=2, decoder_dim=64)
    torch.manual_seed(0)
    ramps = torch.linspace(-1, 1, 64)
    images = torch.stack([torch.outer(ramps * a, (3 * b * ramps).sin()) for a in (1, 2) for b in (1, 2)])
    images = images[:, None].expand(-1, 3, -1, -1)
    units = torch.rand(4, 4).argsort(dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = model(images, units)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert losses[-1] < 0.7 * losses[0]


# -- looking -----------------------------------------------------------------------


@pytest.mark.parametrize(("views", "predict"), [(2, None), (4, 1)])
def test_reconstructions_keep_what_is_seen(views: int, predict: int | None) -> None:
    model = make(views=views, predict=predict).eval()
    images, units = batch(model)
    pictures = model.reconstruct(images, units)
    assert pictures.shape == (2, views, 3, 64, 96)
    start = 0
    for view, size in enumerate(model.view_sizes):
        true, made = (model.backbone.unit_patches(x) for x in (images, pictures[:, view]))
        for i in range(2):
            same = (true[i] == made[i]).flatten(1).all(dim=1)  # [U]
            assert set(same.nonzero().flatten().tolist()) == set(units[i, start : start + size].tolist())
        start += size


def test_reconstruction_undoes_the_normalisation() -> None:
    """With a decoder that predicts the truth, each reconstruction is the image itself."""
    model = make(views=2).eval()
    images, units = batch(model)
    images = 3 * images + 2

    class Oracle(torch.nn.Module):
        def forward(self, *_: Any) -> Tensor:
            targets = normalise_patches(patches.reshape(2, 6, 4, -1))[0]
            return torch.cat([targets[:, 3:], targets[:, :3]], dim=1).flatten(1, 2)

    patches = torch.stack([model.backbone.unit_patches(images)[i, units[i]] for i in range(2)])
    model.decoder = Oracle()
    assert model(images, units).item() < 1e-10
    expected = images[:, None].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(model.reconstruct(images, units), expected, atol=1e-4, rtol=1e-4)


def test_normalised_patches_as_mae_has_them() -> None:
    x = torch.randn(3, 5, 48) * 7 + 2
    normed, mean, deviation = normalise_patches(x)
    torch.testing.assert_close(normed.var(dim=-1), torch.ones(3, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed * deviation + mean, x)
    flat = normalise_patches(torch.ones(1, 1, 48))[0]
    assert flat.abs().max() == 0


# -- asking for it -----------------------------------------------------------------


def test_what_the_stream_is_told() -> None:
    assert CoMA("dyvit_tiny", img_size=64, patch_size=2, views=4).stream_options() == {
        "views": 4,
        "unit_size": 16,
        "image_size": 64,
    }
    assert make((64, 96)).stream_options()["image_size"] == (64, 96)


def test_other_sizes_than_the_usual() -> None:
    model = make((64, 96), views=2)
    units = torch.rand(1, 9).argsort(dim=1)
    assert model(torch.randn(1, 3, 96, 96), units).isfinite()
    assert model.reconstruct(torch.randn(1, 3, 96, 96), units).shape == (1, 2, 3, 96, 96)


def test_state_dict_names_each_weight_once() -> None:
    names = list(make().state_dict())
    assert {name.split(".")[0] for name in names} == {"backbone", "decoder"}
    model = make()
    assert model.no_weight_decay() == {"backbone.patch_embed.position", "decoder.queries.mask_token"}
    assert model.no_weight_decay() <= set(names)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"views": 1}, "at least 2"),
        ({"views": 4, "predict": 4}, "predicts 1 to 3"),
        ({"views": 4, "predict": 0}, "predicts 1 to 3"),
        ({"views": 7}, "7 views of 6 mask unit"),
        ({"img_size": 80}, "80x80 is not a multiple of the 32-pixel mask unit"),
        ({"decoder_dim": 40}, "multiple of 32"),
        ({"decoder_depth": 0}, "one block or more"),
        ({"memory_stages": 0}, "memory of 0 stages: this backbone has 4"),
        ({"memory_stages": 5}, "memory of 5 stages: this backbone has 4"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make(**kwargs)
    assert "\n" not in str(caught.value)


def test_units_that_do_not_fit_the_images_are_a_bug() -> None:
    model = make()
    with pytest.raises(ValueError, match="2x3 units"):
        model(torch.randn(2, 3, 64, 96), torch.zeros(2, 9, dtype=torch.long))
