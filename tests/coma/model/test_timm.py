"""DyViT as timm's users know its models."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import coma.model.attention
import coma.model.blocks
import coma.model.layout
from coma.errors import UsageError

VARIANTS = [f"dyvit_{size}" for size in ("nano", "tiny", "small", "base", "large")]


@pytest.mark.parametrize("module", [coma.model.attention, coma.model.blocks, coma.model.layout])
def test_what_dyvit_needs_does_not_import_timm(module: ModuleType) -> None:
    """Timm's import ends with that of coma.model.dyvit: a part that began it would be needed half-made."""
    assert "timm" not in re.findall(r"^(?:from|import) (\w+)", inspect.getsource(module), flags=re.MULTILINE)


def test_features_only_strides_channels_and_shapes() -> None:
    model = timm.create_model("dyvit_tiny", features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [64, 128, 256, 512]
    shapes = [tuple(f.shape) for f in model(torch.randn(1, 3, 64, 96))]
    assert shapes == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]


def test_features_only_prunes_and_follows_the_patch() -> None:
    whole = timm.create_model("dyvit_tiny", num_classes=0)
    model = timm.create_model("dyvit_tiny", features_only=True, out_indices=(0, 2), patch_size=2)
    assert model.feature_info.reduction() == [2, 8]
    assert [tuple(f.shape) for f in model(torch.randn(1, 3, 32, 48))] == [(1, 64, 16, 24), (1, 256, 4, 6)]
    assert sum(p.numel() for p in model.parameters()) < 0.7 * sum(p.numel() for p in whole.parameters())


def test_forward_intermediates_agree_with_the_forward() -> None:
    model = timm.create_model("dyvit_tiny", num_classes=0).eval()
    images = torch.randn(2, 3, 64, 32)
    final, maps = model.forward_intermediates(images, norm=True)
    torch.testing.assert_close(final, model.forward_features(images))
    torch.testing.assert_close(maps[-1].permute(0, 2, 3, 1), final)
    torch.testing.assert_close(model.forward_head(final, pre_logits=True), final.mean(dim=(1, 2)))
    (nhwc,) = model.forward_intermediates(images, 1, output_fmt="NHWC", intermediates_only=True)
    assert nhwc.shape == (2, 2, 1, 512)


def test_classifier_head() -> None:
    model = timm.create_model("dyvit_tiny", num_classes=10, in_chans=1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    assert model.get_classifier().out_features == 10
    model.reset_classifier(4)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    model.reset_classifier(0)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, model.num_features)


def test_default_cfg_and_data_config() -> None:
    model = timm.create_model("dyvit_base.coma_in1k", num_classes=0)
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)
    assert data["interpolation"] == "bicubic"
    assert timm.list_pretrained("dyvit*") == []
    model = timm.create_model("dyvit_tiny", img_size=96, num_classes=0)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 96, 96)
    assert timm.create_model("dyvit_tiny", num_classes=0).default_cfg["input_size"] == (3, 224, 224)


def test_parameter_groups() -> None:
    model = timm.create_model("dyvit_tiny", num_classes=5)
    position = model.patch_embed.position
    no_decay, decay = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert any(p is position for p in no_decay["params"])
    assert all(p.ndim >= 2 for p in decay["params"])
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.head.fc.weight)] == 1
    assert scale[id(position)] == min(scale.values())
    blocks = [scale[id(block.norm1.weight)] for stage in model.stages for block in stage.blocks]
    assert blocks == sorted(blocks)
    assert len(set(blocks)) == 9


# -- of every variant ----------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_features_of_images_of_any_size(name: str) -> None:
    """Detection and segmentation feed what they have: non-square, smaller or larger than `img_size`."""
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
        for height, width in ((800, 1344), (64, 32), (512, 512)):
            maps = model(torch.empty(2, 3, height, width))
            assert [tuple(f.shape) for f in maps] == [
                (2, channels, height // stride, width // stride)
                for channels, stride in zip(model.feature_info.channels(), (4, 8, 16, 32), strict=True)
            ]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_has_its_layer(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    blocks = sum(len(stage.blocks) for stage in model.stages)
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() < names
    for coarse, layers in ((False, blocks + 2), (True, 4 + 2)):  # the stem, blocks or stages, the classifier
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(n for group in groups.values() for n in group) == sorted(names)
        of = {n: layer for layer, group in groups.items() for n in group}
        assert set(of.values()) == set(range(max(of.values()) + 1))
        assert len(groups) == layers
        assert of["patch_embed.position"] == of["patch_embed.proj.weight"] == 0
        order = [of[n] for n, _ in model.stages.named_parameters(prefix="stages")]
        assert order == sorted(order)
        assert of["head.fc.weight"] == max(of.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_drop_path_rises_from_zero(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "rate", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.4, len(rates)).tolist())


def test_weights_fit_any_image_size() -> None:
    small = timm.create_model("dyvit_nano", img_size=(64, 96), num_classes=3).eval()
    large = timm.create_model("dyvit_nano", img_size=256, num_classes=3).eval()
    large.load_state_dict(small.state_dict())
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(large(images), small(images))


def test_checkpointing_drops_the_same_paths_again() -> None:
    torch.manual_seed(0)
    model = timm.create_model("dyvit_nano", num_classes=3, drop_path_rate=0.5).train()
    images, grads = torch.randn(4, 3, 64, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        model(images).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_intermediates_stop_early() -> None:
    model = timm.create_model("dyvit_nano", num_classes=0).eval()
    images, ran = torch.randn(1, 3, 64, 96), []
    for s, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, s=s: ran.append(s))
    early = model.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert ran == [0, 1]
    whole = model.forward_intermediates(images, intermediates_only=True)
    assert [tuple(f.shape) for f in whole] == [(1, 32 * 2**s, 16 >> s, 24 >> s) for s in range(4)]
    for a, b in zip(early, whole, strict=False):
        assert torch.equal(a, b)
    assert not torch.equal(whole[-1], model.forward_intermediates(images, norm=True)[1][-1])


def test_the_factory_decides_device_and_dtype() -> None:
    model = timm.create_model("dyvit_nano", device="meta", dtype=torch.float64)
    model.reset_classifier(3, "max")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


def test_weights_of_colour_images_serve_for_grey_and_for_six_channels(tmp_path: Path) -> None:
    """As timm does it for others: the features of what is grey, or twice the same, stay."""
    torch.manual_seed(0)
    colour = timm.create_model("dyvit_nano", num_classes=0).eval()
    save_file(colour.state_dict(), tmp_path / "model.safetensors")
    written = {"file": str(tmp_path / "model.safetensors")}
    grey = torch.randn(1, 1, 64, 64)
    expected = colour(grey.expand(-1, 3, -1, -1))
    for channels in (1, 3, 6):
        model = timm.create_model(
            "dyvit_nano", pretrained=True, pretrained_cfg_overlay=written, in_chans=channels, num_classes=0
        )
        torch.testing.assert_close(model.eval()(grey.expand(-1, channels, -1, -1)), expected)


def test_images_that_do_not_fit_are_refused_in_one_line() -> None:
    model = timm.create_model("dyvit_nano", num_classes=0)
    for shape, named in (
        ((1, 3, 64, 100), "64x100 is not a multiple of the 32-pixel"),
        ((1, 1, 64, 64), r"\[1, 1, 64, 64\].*3 channels"),
        ((3, 64, 64), r"\[3, 64, 64\].*3 channels"),
    ):
        with pytest.raises(UsageError, match=named):
            model(torch.zeros(shape))


def test_reset_classifier_may_change_the_pooling() -> None:
    model = timm.create_model("dyvit_nano", num_classes=5).eval()
    images = torch.randn(2, 3, 64, 96)
    model.reset_classifier(0, "max")
    torch.testing.assert_close(model(images), model.forward_features(images).amax(dim=(1, 2)))
    assert model.num_classes == 0


@pytest.mark.parametrize("name", ["dyvit_nano", "vit_tiny_patch16_224"])
def test_a_network_made_on_the_meta_device_is_initialised_afterwards(name: str) -> None:
    """As FSDP2 does with networks that fit no single device."""
    sizes = {"patch_size": 2, "img_size": 64} if name == "dyvit_nano" else {"img_size": 224}
    with torch.device("meta"):
        model = coma.CoMA(name, **sizes)
    model.to_empty(device="cpu")
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(float("nan"))
    model.init_weights()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    assert [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()] == []
    torch.manual_seed(0)
    usual = dict(coma.CoMA(name, **sizes).named_parameters())
    for key, parameter in model.named_parameters():
        assert float(parameter.std()) == pytest.approx(float(usual[key].std()), rel=0.5, abs=0.01), key


def test_a_traced_backbone_gives_the_same_numbers() -> None:
    model = timm.create_model("dyvit_nano", img_size=64, patch_size=2, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images))


def test_the_input_size_is_set_as_in_timm() -> None:
    model = timm.create_model("dyvit_nano", patch_size=2)
    model.set_input_size((64, 96))
    assert model.img_size == (64, 96)
    assert model.pretrained_cfg["input_size"] == (3, 64, 96)
    with pytest.raises(UsageError, match="100x100 is not a multiple"):
        model.set_input_size(100)
