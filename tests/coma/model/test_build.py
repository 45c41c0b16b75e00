"""Networks by the names the command takes: masking and backbone combine freely."""

from typing import Any

import pytest
import torch

from coma.errors import UsageError
from coma.model.build import build
from coma.model.coma import CoMA
from coma.model.dyvit import DyViT
from coma.model.independent import IndependentMasks
from coma.model.mae import MAE
from coma.pipeline.views import partition_units


@pytest.mark.parametrize("method", ["coma", "independent", "mae"])
@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("dyvit_tiny", {"patch_size": 2}),
        ("dyvit_tiny", {"patch_size": 4}),
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"patch_size": 8}),
    ],
)
def test_each_method_on_each_backbone(method: str, model: str, kwargs: dict[str, Any]) -> None:
    autoencoder = build(model, method, image_size=64, views=3, **kwargs)
    assert type(autoencoder) is {"coma": CoMA, "independent": IndependentMasks, "mae": MAE}[method]
    options = autoencoder.stream_options()
    units = (options["image_size"] // options["unit_size"]) ** 2
    laid = partition_units(torch.arange(2), torch.zeros(2).long(), seed=0, units=units)
    loss = autoencoder(torch.randn(2, 3, 64, 64), laid)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert all(p.grad is not None for p in autoencoder.parameters())
    features = autoencoder.backbone.forward_features(torch.randn(1, 3, 64, 64))
    assert features.shape[-1] == autoencoder.backbone.num_features


def test_same_seed_same_weights() -> None:
    first, second = (torch.manual_seed(3) and build("dyvit_tiny", image_size=64) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_options_reach_the_backbone() -> None:
    model = build("dyvit_tiny", image_size=64, patch_size=2, drop_path_rate=0.3, predict=1, views=4)
    assert isinstance(model.backbone, DyViT)
    assert model.backbone.unit_size == 16
    assert model.backbone.stages[3].blocks[0].drop_path.rate == pytest.approx(0.3)
    assert model.predict == 1


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        (("dyvit_bas",), {}, "dyvit_base"),
        (("vit_base_patch16",), {}, "vit_base_patch16_224"),
        (("vit_base",), {}, "did you mean 'vit_base_patch16_224' or 'vit_base_patch16_"),
        (("ViT-Large",), {}, "did you mean 'vit_large_patch16_224' or"),
        (("vit_base_patch16_224.mae",), {}, "did you mean 'vit_base_patch16_224'?"),
        (("dyvit",), {}, "did you mean 'dyvit_base' or"),
        (("resnet50",), {}, "no model named 'resnet50' can be pre-trained: choose dyvit_base, vit_base_patch16_224,"),
        (("dyvit_tiny", "com"), {}, "did you mean 'coma'"),
        (("dyvit_tiny", "simmim"), {}, "choose coma, independent, mae"),
        (("dyvit_tiny",), {"views": 1}, "at least 2"),
        (("dyvit_tiny",), {"image_size": 230}, "230x230"),
    ],
)
def test_mistakes_are_told_in_one_line(args: Any, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(*args, **kwargs)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
