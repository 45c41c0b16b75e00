"""MAE against a small reference written independently, and on DyViT."""

from typing import Any

import pytest
import timm
import torch
from predictions import predict_pixels
from torch import Tensor, nn

from coma.errors import UsageError
from coma.model.dyvit import DyViT
from coma.model.encoders import build_backbone
from coma.model.mae import MAE
from coma.pipeline.views import view_sizes

TINY = "vit_tiny_patch16_224"


def make(name: str = TINY, img_size: Any = 64, **kwargs: Any) -> MAE:
    torch.manual_seed(0)
    return MAE(name, img_size=img_size, **kwargs)


def batch(model: MAE, images: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(images, 3, *model.img_size), torch.rand(images, model.units).argsort(dim=1)


def sincos_reference(dim: int, side: int) -> Tensor:
    """facebookresearch/mae's get_2d_sincos_pos_embed, position by position."""
    out = torch.zeros(side * side, dim)
    for row in range(side):
        for column in range(side):
            for i in range(dim // 4):
                omega = 1 / 10000 ** (i / (dim / 4))
                place = out[row * side + column]
                for half, position in enumerate((column, row)):
                    angle = torch.tensor(position * omega)
                    place[half * dim // 2 + i] = angle.sin()
                    place[half * dim // 2 + dim // 4 + i] = angle.cos()
    return out


def mae_reference(model: MAE, images: Tensor, units: Tensor) -> Tensor:
    """MAE's loss as its paper tells it: tokens in raster order, mask tokens put back in place."""
    vit, decoder = model.backbone, model.decoder
    b, side = len(images), images.shape[-1] // 16
    total, seen = side * side, side * side // 4
    hidden = torch.ones(b, total, dtype=torch.bool)
    hidden.scatter_(1, units[:, :seen], False)

    tokens = vit.patch_embed.proj(images).flatten(2).transpose(1, 2) + sincos_reference(vit.embed_dim, side)
    x = torch.stack([t[~h] for t, h in zip(tokens, hidden, strict=True)])
    for block in vit.blocks:
        x = block(x)
    x = decoder.embed(vit.norm(x))

    full = decoder.mask_token.expand(b, total, -1).clone()
    for i in range(b):
        full[i, ~hidden[i]] = x[i]
    full = full + sincos_reference(full.shape[-1], side)
    for block in decoder.blocks:
        full = block(full)
    predicted = decoder.head(decoder.norm(full))

    target = images.reshape(b, 3, side, 16, side, 16).permute(0, 2, 4, 3, 5, 1).reshape(b, total, -1)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    return ((predicted - target) ** 2).mean(-1)[hidden].mean()


def test_loss_and_gradients_are_those_of_the_reference() -> None:
    model = make()
    images, units = batch(model)
    loss, expected = model(images, units), mae_reference(model, images, units)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_it_is_maes_own_shape_for_vit_base() -> None:
    with torch.device("meta"):
        model = MAE("vit_base_patch16_224")
    assert len(model.decoder.blocks) == 8
    assert model.decoder.blocks[0].attn.num_heads == 16
    assert model.decoder.head.weight.shape == (768, 512)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(111.65e6, rel=0.005)  # without positions
    visible, hidden = model.split_units(torch.arange(196)[None])
    assert (visible[0].shape, hidden[0].shape) == ((1, 49), (1, 147))


def test_the_stream_it_asks_for_lays_the_visible_quarter_first() -> None:
    model = make(img_size=224)
    assert model.stream_options() == {"views": 4, "unit_size": 16, "image_size": 224}
    ((visible,), _) = model.split_units(torch.arange(196)[None])
    assert visible.shape[1] == view_sizes(196, 4)[0] == 49


@pytest.mark.parametrize("name", [TINY, "dyvit_tiny"])
def test_predictions_do_not_see_hidden_pixels(name: str) -> None:
    model = make(name, img_size=(96, 64) if name == "dyvit_tiny" else 64)
    images, units = batch(model, 1)
    images.requires_grad_()
    (grad,) = torch.autograd.grad(predict_pixels(model, images, units).square().sum(), images)
    by_unit = model.encoder.unit_patches(grad)[0]
    ((visible,), (hidden,)) = model.split_units(units)
    assert (by_unit[hidden[0]] == 0).all()
    assert (by_unit[visible[0]].abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("name", [TINY, "dyvit_tiny"])
def test_every_parameter_learns_and_pictures_keep_what_is_seen(name: str) -> None:
    model = make(name)
    images, units = batch(model)
    model(images, units).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    pictures = model.reconstruct(images, units)
    assert pictures.shape == (2, 1, 3, 64, 64)
    true, made = (model.encoder.unit_patches(x) for x in (images, pictures[:, 0]))
    for i in range(2):
        same = (true[i] == made[i]).flatten(1).all(dim=1).nonzero().flatten()
        assert sorted(same.tolist()) == sorted(units[i, : model.units // 4].tolist())


def test_vit_encodes_downstream_what_it_was_trained_on() -> None:
    """All patches through the encoder are timm's own forward_features."""
    model = make().eval()
    images, units = batch(model)
    patches = torch.stack([model.encoder.unit_patches(images)[i, units[i]] for i in range(2)])
    (tokens,) = model.encoder.encode_patches(patches, (4, 4), units)
    plain = model.backbone.forward_features(images)
    torch.testing.assert_close(tokens, torch.stack([plain[i, units[i]] for i in range(2)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (6, 5, 5)])
def test_vit_views_do_not_see_each_other(sizes: tuple[int, ...]) -> None:
    model = make().eval()
    images, units = batch(model)
    patches = torch.stack([model.encoder.unit_patches(images)[i, units[i]] for i in range(2)])
    (joint,) = model.encoder.encode_patches(patches, (4, 4), units, sizes)
    start = 0
    for n in sizes:
        part = slice(start, start + n)
        (alone,) = model.encoder.encode_patches(patches[:, part], (4, 4), units[:, part])
        torch.testing.assert_close(alone, joint[:, part], atol=1e-5, rtol=1e-4)
        start += n


def test_vit_has_no_parameter_outside_its_modules() -> None:
    """Parameters that the encoder would use past their owner's forward stay empty under ZeRO-3."""
    vit = build_backbone(TINY, 64)
    assert not [name for name, _ in vit.named_parameters(recurse=False)]
    assert isinstance(vit.norm, nn.LayerNorm)
    assert timm.create_model(TINY, img_size=64).cls_token is not None  # which timm's own has


def test_too_few_units_are_refused() -> None:
    with pytest.raises(UsageError, match="MAE shows one in 4"):
        MAE("dyvit_tiny", img_size=32)
    with pytest.raises(UsageError, match="DyViT or a timm ViT"):
        MAE(timm.create_model("resnet10t", num_classes=0))


def test_a_backbone_may_be_given_as_a_module() -> None:
    backbone = DyViT(num_classes=0, dims=(32, 64, 128, 256), depths=(1, 1, 1, 1), patch_size=2)
    model = MAE(backbone, img_size=32)
    assert model.backbone is backbone
    assert model(*batch(model)).isfinite()


def test_half_precision_on_a_cpu() -> None:
    model = make()
    images, units = batch(model)
    expected = model(images, units).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images, units).item() == pytest.approx(expected, rel=0.02)
    assert model.bfloat16()(images, units).item() == pytest.approx(expected, rel=0.02)
