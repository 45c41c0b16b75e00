"""MAE against transformers' ViTMAEForPreTraining: the same weights, images and visible patches.

The one difference is the class token, which ours does not have (coma/model/encoders.py says why). The reference runs
with its attention function replaced by one in which nobody looks at the first token: what is left is MAE.
"""

from typing import Any

import pytest
import torch
from predictions import predict_pixels
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, ViTMAEConfig, ViTMAEForPreTraining

from coma.model.autoencoder import normalise_patches
from coma.model.mae import MAE


def past_the_class_token(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any
) -> tuple[Tensor, None]:
    """q, k, v [B, H, 1 + N, D] to [B, 1 + N, H, D]."""
    out = F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:], scale=options["scaling"])
    return out.transpose(1, 2), None


AttentionInterface.register("past_the_class_token", past_the_class_token)


@pytest.fixture(scope="module")
def ours() -> MAE:
    torch.manual_seed(0)
    model = MAE("vit_tiny_patch16_224", img_size=96, depth=3, decoder_dim=64, decoder_depth=2)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not name.endswith("mask_token"):
            nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
    return model


@pytest.fixture(scope="module")
def theirs(ours: MAE) -> ViTMAEForPreTraining:
    config = ViTMAEConfig(
        image_size=96,
        hidden_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=768,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=256,
        layer_norm_eps=1e-6,  # facebookresearch/mae's; transformers' default is 1e-12
        norm_pix_loss=True,
        mask_ratio=0.75,
        attn_implementation="past_the_class_token",
    )
    model = ViTMAEForPreTraining(config)
    # transformers 5.24 leaves the positions of a network that is not loaded from a file at zero: the projection
    # is marked as initialised before they are looked at.
    model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(36)
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert positions[0, 1:].norm(dim=1).gt(1).all()  # theirs, by their own code: they are not copied
    left = model.load_state_dict(their_weights(ours), strict=False)
    assert not left.unexpected_keys
    assert sorted(left.missing_keys) == [
        "decoder.decoder_pos_embed",
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
    ]
    return model


def their_weights(model: MAE) -> dict[str, Tensor]:
    """Our weights under transformers' names."""
    weights = {}
    for name, value in model.state_dict().items():
        for old, new in (
            ("backbone.patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
            ("backbone.blocks", "vit.layers"),
            ("backbone.norm", "vit.layernorm"),
            ("decoder.embed", "decoder.decoder_embed"),
            ("decoder.blocks", "decoder.decoder_layers"),
            ("decoder.norm", "decoder.decoder_norm"),
            ("decoder.head", "decoder.decoder_pred"),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".attn.proj.", ".attention.o_proj."),
        ):
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, letter in zip(value.chunk(3), "qkv", strict=True):
                weights[name.replace("attn.qkv", f"attention.{letter}_proj")] = part
        else:
            weights[name] = value.reshape(1, 1, -1) if name.endswith("mask_token") else value
    return weights


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 2 * torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(1)) + 0.5


@pytest.fixture(scope="module")
def units() -> Tensor:
    return torch.rand(4, 36, generator=torch.Generator().manual_seed(2)).argsort(dim=1)


def test_predictions_loss_and_gradients_are_theirs(
    ours: MAE, theirs: ViTMAEForPreTraining, images: Tensor, units: Tensor
) -> None:
    reference = theirs(images, noise=units.argsort(dim=1).float())  # visible: the lowest noise
    hidden = units[:, 9:]
    assert torch.equal(reference.mask.bool().sum(dim=1), torch.full((4,), 27))
    assert reference.mask.bool().gather(1, hidden).all()

    expected = reference.logits.gather(1, hidden[..., None].expand(-1, -1, 768))
    torch.testing.assert_close(predict_pixels(ours, images, units), expected, atol=1e-5, rtol=1e-5)
    loss = ours(images, units)
    torch.testing.assert_close(loss, reference.loss, atol=1e-6, rtol=1e-6)

    reference.loss.backward()
    loss.backward()
    by_name = dict(theirs.named_parameters())
    grads = their_gradients(ours)
    assert grads.keys() == {name for name, p in by_name.items() if p.requires_grad and "cls_token" not in name}
    for name, grad in grads.items():
        torch.testing.assert_close(by_name[name].grad, grad, atol=1e-5, rtol=1e-4, msg=name)


def their_gradients(model: MAE) -> dict[str, Tensor]:
    """Our gradients under transformers' names (a state dict has no gradients: they pass through a twin)."""
    copy = MAE("vit_tiny_patch16_224", img_size=96, depth=3, decoder_dim=64, decoder_depth=2)
    copy.load_state_dict({name: p.grad for name, p in model.named_parameters()})
    return their_weights(copy)


def test_targets_are_their_patches_in_their_order(ours: MAE, theirs: ViTMAEForPreTraining, images: Tensor) -> None:
    """A unit's values go row by row, column by column, channel by channel; the variance is the unbiased one."""
    patches = ours.encoder.unit_patches(images)[:, :, 0]  # [B, U, P]
    expected = theirs.patchify(images)
    assert torch.equal(patches, expected)
    targets, mean, deviation = normalise_patches(patches)
    torch.testing.assert_close(mean, expected.mean(dim=-1, keepdim=True))
    assert torch.equal(deviation, (expected.var(dim=-1, keepdim=True, correction=1) + 1e-6).sqrt())
    assert (deviation / (expected.var(dim=-1, keepdim=True, correction=0) + 1e-6).sqrt() > 1.0005).all()
    torch.testing.assert_close(targets, (expected - mean) / deviation)


def test_the_same_predictions_cost_the_same(
    ours: MAE, theirs: ViTMAEForPreTraining, images: Tensor, units: Tensor
) -> None:
    """The loss alone, in the reference's own words, of predictions that no network made."""
    predicted = torch.randn(4, 36, 768, generator=torch.Generator().manual_seed(3))
    target = theirs.patchify(images)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    mask = torch.ones(4, 36).scatter(1, units[:, :9], 0.0)
    expected = (((predicted - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()

    class Given(nn.Module):
        def forward(self, *_: Any) -> Tensor:
            return predicted.gather(1, units[:, 9:, None].expand(-1, -1, 768))

    model = MAE("vit_tiny_patch16_224", img_size=96, depth=1)
    model.decoder = Given()
    torch.testing.assert_close(model(images, units), expected, atol=1e-6, rtol=1e-6)


def test_vit_base_has_their_parameters_but_the_class_token() -> None:
    with torch.device("meta"):
        ours = MAE("vit_base_patch16_224")
        theirs = ViTMAEForPreTraining(ViTMAEConfig())
    learned = {name: p.numel() for name, p in theirs.named_parameters() if p.requires_grad}
    assert learned.pop("vit.embeddings.cls_token") == 768
    assert sum(p.numel() for p in ours.parameters()) == sum(learned.values())
