"""Vectors and patch maps of timm's models: the model's own numbers, laid out as a map."""

import pytest
import timm
import torch
from torch import Tensor

import coma.model.dyvit_variants  # noqa: F401  (registers them)
from coma.errors import UsageError
from coma.evaluation.maps import patch_maps, vectors, vectors_and_maps

SIZE = 64
MODELS = {  # name → options that make it small
    "dyvit_nano": {"img_size": SIZE, "patch_size": 2},
    "vit_tiny_patch16_224": {"img_size": SIZE, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "depth": 1},
    "test_resnet": {},
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": {"img_size": 112, "window_size": 7, "depths": (1, 1, 1, 1), "embed_dim": 24},
}


def make(name: str) -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(0)
    options = MODELS[name]
    model = timm.create_model(name, num_classes=0, **options).eval()
    size = int(options.get("img_size", SIZE))
    return model, torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_vectors_are_what_the_model_gives_without_classifier(name: str) -> None:
    model, images = make(name)
    together, _ = vectors_and_maps(model, images)
    assert torch.equal(vectors(model, images), model(images))
    assert torch.allclose(together, model(images), atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_map_holds_the_models_own_features_where_they_are(name: str) -> None:
    model, images = make(name)
    maps, features = patch_maps(model, images), model.forward_features(images)
    assert maps.ndim == 4
    assert len(maps) == len(images)
    if features.ndim == 3:
        tokens = features[:, model.num_prefix_tokens :]
        assert torch.allclose(maps.flatten(2).transpose(1, 2), tokens, atol=1e-6)
    else:
        in_order = features if features.shape[1] == maps.shape[1] else features.permute(0, 3, 1, 2)
        assert torch.allclose(maps, in_order, atol=1e-6)


@torch.no_grad()
def test_a_map_is_laid_out_as_rows_and_columns_of_the_image() -> None:
    """A patch's features alone change with its pixels, in a ViT whose blocks add nothing."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(64, 96), depth=1).eval()
    for last in (model.blocks[0].attn.proj, model.blocks[0].mlp.fc2):
        last.weight.zero_()  # the block adds nothing that depends on the image
    images = torch.randn(1, 3, 64, 96)
    before = patch_maps(model, images)
    images[:, :, 16:32, 80:96] += 1
    changed = (patch_maps(model, images) != before).any(dim=1)[0]
    assert changed.shape == (4, 6)
    assert changed.nonzero().tolist() == [[1, 5]]


@torch.no_grad()
def test_a_model_that_lays_out_nothing_itself_is_laid_out() -> None:
    model, images = make("vit_tiny_patch16_224")
    expected = patch_maps(model, images)

    class Bare(torch.nn.Module):
        num_features, num_prefix_tokens = 192, 1

        def forward_features(self, images: Tensor) -> Tensor:
            return model.forward_features(images)

        def forward_head(self, tokens: Tensor) -> Tensor:
            return model.forward_head(tokens)

    assert torch.allclose(patch_maps(Bare(), images), expected, atol=1e-6)


@torch.no_grad()
def test_a_map_is_resampled_to_a_stride() -> None:
    model, images = make("vit_tiny_patch16_224")
    own = patch_maps(model, images)  # at stride 16
    assert torch.equal(patch_maps(model, images, 16), own)
    finer, coarser = patch_maps(model, images, 8), patch_maps(model, images, 32)
    assert finer.shape[-2:] == (8, 8)
    assert torch.cosine_similarity(coarser.mean(dim=(2, 3)), own.mean(dim=(2, 3))).min() > 0.95
    with pytest.raises(UsageError, match=r"--stride 5 does not divide images of 64 pixels: give one of 1, 2, 4, 8"):
        patch_maps(model, images, 5)


def test_a_model_without_pooling_has_no_vectors() -> None:
    model = timm.create_model("test_resnet", num_classes=0, global_pool="").eval()
    with pytest.raises(UsageError, match="not one vector"):
        vectors(model, torch.randn(1, 3, 64, 64))
