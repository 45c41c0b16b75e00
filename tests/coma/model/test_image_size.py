"""Backbones that take images of another size than the one they were made for."""

import pytest
import timm
import torch

from coma.errors import UsageError
from coma.model.encoders import build_backbone, set_image_size

SMALL = {"depth": 1, "embed_dim": 64, "num_heads": 2}
NAME = "vit_tiny_patch16_224"


@torch.no_grad()
def test_fixed_positions_are_made_anew():
    backbone, other = build_backbone(NAME, 64, **SMALL), build_backbone(NAME, 96, **SMALL)
    other.load_state_dict(backbone.state_dict())
    set_image_size(backbone, 96)
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(backbone.eval()(images), other.eval()(images), rtol=0, atol=0)
    assert "pos_embed" not in dict(backbone.named_parameters())


@torch.no_grad()
@pytest.mark.parametrize("no_embed_class", [False, True])
def test_learned_positions_are_resampled_as_timm_does(no_embed_class):
    args = {"class_token": True, "reg_tokens": 2, "no_embed_class": no_embed_class}
    backbone = build_backbone(NAME, 64, args, **SMALL)
    torch.nn.init.normal_(backbone.pos_embed)
    reference = timm.create_model(NAME, num_classes=0, img_size=96, global_pool="avg", **args, **SMALL)
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(backbone.state_dict(), reference)
    reference.load_state_dict(filtered)
    set_image_size(backbone, 96)
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(backbone.eval()(images), reference.eval()(images), rtol=0, atol=1e-5)


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="100 is no multiple of the ViT's patch of 16 pixels"):
        set_image_size(build_backbone(NAME, 64, **SMALL), 100)
    with pytest.raises(UsageError):
        set_image_size(build_backbone("dyvit_nano", 64), 50)
