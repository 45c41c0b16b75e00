"""What timm's and torch's users do with a Hiera or a Swin, done with each of the two and with a DyViT.

Each test asks of all three the same, so what is asked of DyViT is what its peers do, of the timm that is installed.
"""

import copy
import io
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import Hiera, SwinTransformer, group_parameters, load_checkpoint, model_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad, freeze, reparameterize_model, unfreeze
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FeaturePyramidNetwork

import coma
from coma.errors import UsageError

WIDTHS = [16, 32, 64, 128]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "hiera": ("hiera_tiny_224", {"embed_dim": 16, "stages": (1, 1, 2, 1)}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 4},
    ),
    "dyvit": ("dyvit_nano", {"dims": WIDTHS, "depths": (1, 1, 2, 1), "head_dims": (8, 8, 16, 16)}),
}
OURS = [pytest.param(name, marks=pytest.mark.slow if name != "dyvit" else ()) for name in SHAPES]
"""Where the peers take long."""
BLOCKS = ("HieraBlock", "SwinTransformerBlock", "Block")
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=SHAPES)
def peer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def create(peer: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    name, shape = SHAPES[peer]
    return timm.create_model(name, **{"img_size": 64, "num_classes": 5, **shape, **kwargs})


def make(peer: str, **kwargs: Any) -> Any:
    """A model whose logits are not zero, as Hiera's are at first."""
    model = create(peer, **kwargs)
    if "head.fc.weight" in dict(model.named_parameters()):
        nn.init.normal_(model.head.fc.weight, std=0.1)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in BLOCKS]


def shapes(maps: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(map_.shape) for map_ in maps]


def backward(loss: Tensor, model: nn.Module) -> None:
    loss.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# -- made by the factory ------------------------------------------------------------------------------------


def test_the_registry_knows_it(peer: str) -> None:
    name = SHAPES[peer][0]
    assert timm.is_model(name)
    assert name in timm.list_models(f"{peer}*")
    assert timm.models.model_entrypoint(name).__name__ == name
    assert timm.models.get_pretrained_cfg(name).num_classes == 1000


def test_arguments_of_timms_training_script(peer: str) -> None:
    name, shape = SHAPES[peer]
    model = timm.create_model(
        name, pretrained=False, in_chans=3, num_classes=5, drop_rate=0.5, drop_path_rate=0.1, drop_block_rate=None,
        global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="", img_size=64, **shape,
    )  # fmt: skip
    assert model(IMAGES).shape == (2, 5)
    assert model.head.drop.p == 0.5
    for unknown in ({"act_layer": nn.ReLU}, {"output_stride": 16}, {"no_such": 1}):
        with pytest.raises(TypeError, match=next(iter(unknown))):
            make(peer, **unknown)


@pytest.mark.parametrize(
    ("size", "last"), [(32, (1, 1)), (64, (2, 2)), ((64, 96), (2, 3)), ([96, 64], (3, 2))], ids=str
)
def test_image_sizes(peer: str, size: Any, last: tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    model = make(peer, img_size=size)
    images = torch.randn(1, 3, height, width)
    assert model(images).shape == (1, 5)
    assert shapes(model.forward_intermediates(images, indices=1, intermediates_only=True)) == [(1, 128, *last)]


@pytest.mark.parametrize("channels", [1, 4])
def test_image_channels(peer: str, channels: int) -> None:
    model = make(peer, in_chans=channels)
    assert model.in_chans == channels
    assert model(torch.randn(2, channels, 64, 64)).shape == (2, 5)


def test_the_norms_are_the_callers(peer: str) -> None:
    model = make(peer, norm_layer=partial(nn.LayerNorm, eps=1e-3))
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-3}
    model = make(peer, norm_layer=nn.RMSNorm)
    assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())
    backward(model(IMAGES), model)


def test_initial_weights_may_be_skipped(peer: str) -> None:
    usual, skipped = make(peer), create(peer, weight_init="skip")
    assert list(skipped.state_dict()) == list(usual.state_dict())
    differing = [k for k, v in usual.state_dict().items() if not torch.equal(v, skipped.state_dict()[k])]
    assert differing
    assert torch.isfinite(skipped(IMAGES)).all()


def test_an_unknown_weight_init_is_refused() -> None:
    with pytest.raises(UsageError, match=r"weight_init='jaxx'.*'skip'"):
        make("dyvit", weight_init="jaxx")


def test_configuration(peer: str) -> None:
    model = make(peer)
    assert model.default_cfg is model.pretrained_cfg
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    name, shape = SHAPES[peer]
    overlay = {"input_size": (3, 128, 128), "num_classes": 7, "mean": (0.5, 0.5, 0.5)}
    model = timm.create_model(name, pretrained_cfg_overlay=overlay, **shape)
    assert model.pretrained_cfg["input_size"] == (3, 128, 128)
    assert model(torch.randn(1, 3, 128, 128)).shape == (1, 7)
    data = resolve_model_data_config(model)
    assert (data["input_size"], data["mean"]) == ((3, 128, 128), (0.5, 0.5, 0.5))


def test_made_without_the_factory() -> None:
    heads = (((16, 1), (64, 1)), ((4, 2), (16, 2)), ((4, 1), (None, 3)), ((None, 8),))
    own = {"hiera": Hiera, "swin": SwinTransformer, "dyvit": partial(coma.DyViT, heads=heads)}
    for peer, network in own.items():
        model: Any = network(**SHAPES[peer][1], img_size=64, num_classes=5)
        assert model(IMAGES).shape == (2, 5)
        if peer != "hiera":  # which has it not
            model.set_input_size(img_size=(128, 96))
            assert model(torch.randn(1, 3, 128, 96)).shape == (1, 5)


# -- classifier and pooling -----------------------------------------------------------------------------------


def test_classifier_and_features(peer: str) -> None:
    model = make(peer).eval()
    features = model.forward_features(IMAGES)
    torch.testing.assert_close(model.forward_head(features), model(IMAGES))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size) == (2, model.num_features)
    torch.testing.assert_close(model.get_classifier()(pooled), model(IMAGES))
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(IMAGES), pooled)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_pooling(peer: str, pool: str) -> None:
    made, reset = make(peer, global_pool=pool).eval(), make(peer).eval()
    reset.reset_classifier(num_classes=5, global_pool=pool)
    reset.load_state_dict(made.state_dict())
    torch.testing.assert_close(reset(IMAGES), made(IMAGES))


def test_without_pooling_the_map_is_returned(peer: str) -> None:
    model = make(peer, num_classes=0, global_pool="").eval()
    assert model(IMAGES).shape == model.forward_features(IMAGES).shape


@pytest.mark.parametrize("peer", ["swin", "dyvit"])  # Hiera has no such pooling
def test_a_pooling_that_doubles_the_features(peer: str) -> None:
    model = make(peer, global_pool="catavgmax")
    assert model.head_hidden_size == model.get_classifier().in_features == 256
    model.reset_classifier(3, "avg")
    assert model.head_hidden_size == model.get_classifier().in_features == 128


def test_a_new_classifier_is_as_the_model_is(peer: str) -> None:
    model = make(peer).eval().bfloat16()
    model.reset_classifier(3)
    assert model.get_classifier().weight.dtype == torch.bfloat16
    assert not model.get_classifier().training
    assert model(IMAGES.bfloat16()).shape == (2, 3)


# -- feature maps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([-1, 0], [0, 3]), ((1, 3), [1, 3])], ids=str
)
def test_intermediates(peer: str, indices: Any, taken: list[int]) -> None:
    model = make(peer).eval()
    maps = model.forward_intermediates(IMAGES, indices=indices, intermediates_only=True)
    assert shapes(maps) == [(2, 16 * 2**s, 16 >> s, 16 >> s) for s in taken]
    final, again = model.forward_intermediates(IMAGES, indices=indices)
    torch.testing.assert_close(final, model.forward_features(IMAGES))
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))


def test_intermediates_that_stop_early(peer: str) -> None:
    model = make(peer).eval()
    ran: list[int] = []
    for b, block in enumerate(blocks(model)):
        block.register_forward_hook(lambda *_, b=b: ran.append(b))
    final, maps = model.forward_intermediates(IMAGES, indices=[0, 1], stop_early=True)
    assert ran == [0, 1]
    assert shapes(maps) == [(2, 16, 16, 16), (2, 32, 8, 8)]
    assert final.shape[-1] == 32
    assert final.numel() == maps[-1].numel()


def test_intermediates_that_are_not_there(peer: str) -> None:
    model = make(peer)
    with pytest.raises(AssertionError, match="out of range"):
        model.forward_intermediates(IMAGES, indices=[4])
    with pytest.raises((AssertionError, ValueError), match="NCHW"):
        model.forward_intermediates(IMAGES, output_fmt="NLC")


@pytest.mark.parametrize(("indices", "taken"), [([1], [1]), ([0, -2], [0, 2]), ([3], [3]), (1, [3])], ids=str)
@pytest.mark.parametrize("prune_head", [True, False])
def test_what_is_pruned_still_runs(peer: str, indices: Any, taken: list[int], prune_head: bool) -> None:
    whole, model = make(peer).eval(), make(peer).eval()
    expected = whole.forward_intermediates(IMAGES, indices=indices, intermediates_only=True)
    model.prune_intermediate_layers(indices, prune_head=prune_head)
    assert model.num_features == model.forward_features(IMAGES).shape[-1] == WIDTHS[taken[-1]]
    pruned = model.forward_intermediates(IMAGES, indices=taken, intermediates_only=True)
    for a, b in zip(pruned, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert isinstance(model.get_classifier(), nn.Linear) == (taken[-1] == 3 and not prune_head)
    model.reset_classifier(3, "avg")
    assert model(IMAGES).shape == (2, 3)


@pytest.mark.parametrize(
    ("indices", "taken"), [((1, 3), [1, 3]), ((-2, -1), [2, 3]), ((0,), [0]), (2, [2, 3])], ids=str
)
def test_features_only(peer: str, indices: Any, taken: list[int]) -> None:
    model = make(peer, features_only=True, out_indices=indices)
    assert model.feature_info.channels() == [WIDTHS[s] for s in taken]
    assert model.feature_info.reduction() == [4 << s for s in taken]
    assert [info["index"] for info in model.feature_info.get_dicts()] == taken
    maps = model(IMAGES)
    if str(model.output_fmt) == "Format.NHWC":  # Swin's, which is another wrapper
        maps = [map_.permute(0, 3, 1, 2) for map_ in maps]
    assert shapes(maps) == [(2, 16 << s, 16 >> s, 16 >> s) for s in taken]
    backward(sum(map_.sum() for map_ in maps), model)


def test_features_only_under_a_pyramid(peer: str) -> None:
    model = make(peer, features_only=True, feature_cls="getter")
    maps = {str(s): map_ for s, map_ in enumerate(model(IMAGES))}
    pyramid = FeaturePyramidNetwork(model.feature_info.channels(), 8)(maps)
    assert shapes(list(pyramid.values())) == [(2, 8, side, side) for side in (16, 8, 4, 2)]


def test_features_by_hooks(peer: str) -> None:
    model = make(peer)
    seen: dict[str, Tensor] = {}
    for info in model.feature_info:
        module = model.get_submodule(info["module"])
        module.register_forward_hook(lambda _, __, out, name=info["module"]: seen.update({name: out}))
    model(IMAGES)
    assert [out.numel() for out in seen.values()] == [2 * WIDTHS[s] * (16 >> s) ** 2 for s in range(4)]


# -- weights --------------------------------------------------------------------------------------------------


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda weights: weights,
    "model": lambda weights: {"model": weights, "epoch": 3},
    "state_dict": lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    "ema": lambda weights: {"state_dict": {}, "state_dict_ema": weights},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_from_a_file(peer: str, wrapping: str, tmp_path: Path) -> None:
    written, file = make(peer).eval(), tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](written.state_dict()), file)
    overlay = {"file": str(file), "num_classes": 5}
    blank = create(peer, weight_init="skip")
    load_checkpoint(blank, str(file))
    for model in (
        create(peer, weight_init="skip", pretrained=True, pretrained_cfg_overlay=overlay),
        create(peer, weight_init="skip", checkpoint_path=str(file)),
        blank,
    ):
        assert torch.equal(model.eval()(IMAGES), written(IMAGES))


@pytest.mark.parametrize("classes", [0, 3])
def test_weights_of_other_classes_and_channels(peer: str, classes: int) -> None:
    written = make(peer, num_classes=5).eval()
    overlay = {"state_dict": written.state_dict(), "num_classes": 5}
    load = partial(create, peer, weight_init="skip", pretrained=True, pretrained_cfg_overlay=overlay)
    model = load(num_classes=classes).eval()
    assert model(IMAGES).shape == (2, classes or 128)
    assert torch.equal(model.forward_features(IMAGES), written.forward_features(IMAGES))
    grey = IMAGES[:, :1]
    alike = load(in_chans=1, num_classes=classes).eval()
    torch.testing.assert_close(alike.forward_features(grey), written.forward_features(grey.expand(-1, 3, -1, -1)))
    assert load(in_chans=4, num_classes=classes)(torch.randn(1, 4, 64, 64)).shape == (1, classes or 128)
    assert load(features_only=True, num_classes=classes)(IMAGES)[0].shape[0] == 2


def test_weights_of_another_patch_size_are_refused_by_name() -> None:
    overlay = {"state_dict": make("dyvit").state_dict(), "num_classes": 5}
    with pytest.raises(RuntimeError, match=r"size mismatch for patch_embed\.proj\.weight"):
        create("dyvit", patch_size=8, pretrained=True, pretrained_cfg_overlay=overlay)


def test_saved_for_the_hub(peer: str, tmp_path: Path) -> None:
    model = make(peer).eval()
    save_for_hf(model, tmp_path, model_args={**SHAPES[peer][1], "img_size": 64})
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == (SHAPES[peer][0], 5, 128)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))


@pytest.mark.parametrize("peer", ["swin", "dyvit"])  # Hiera's size is set when it is made
def test_the_size_that_was_set_is_saved(peer: str, tmp_path: Path) -> None:
    model = make(peer)
    model.set_input_size(img_size=(128, 128))
    save_for_hf(model, tmp_path, model_args=SHAPES[peer][1])
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert again.pretrained_cfg["input_size"] == (3, 128, 128)
    assert again(torch.randn(1, 3, 128, 128)).shape == (1, 5)


# -- copies and precision -------------------------------------------------------------------------------------


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[Any], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
    "ModelEmaV3": lambda model: ModelEmaV3(model).module,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "DataParallel": nn.DataParallel,
    "reparameterize_model": reparameterize_model,
    "channels_last": lambda model: copy.deepcopy(model).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_give_the_same_numbers(peer: str, how: str) -> None:
    model = make(peer).eval()
    expected = model(IMAGES)  # before: what a forward pass keeps is copied too
    copied = COPIES[how](model).eval()
    images = IMAGES.contiguous(memory_format=torch.channels_last) if how == "channels_last" else IMAGES
    torch.testing.assert_close(copied(images), expected)


def test_averages_are_updated(peer: str) -> None:
    model = make(peer)
    ema = ModelEmaV3(model, decay=0.5)
    before = model.get_classifier().weight.detach().clone()
    with torch.no_grad():
        model.get_classifier().weight.add_(1.0)
    ema.update(model)
    torch.testing.assert_close(ema.module.get_classifier().weight, before + 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.double], ids=str)
def test_precision(peer: str, dtype: torch.dtype) -> None:
    model = make(peer).eval()
    expected = model(IMAGES).detach()
    out = model.to(dtype)(IMAGES.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() < 0.1 * expected.abs().max() + 1e-3
    assert make(peer, dtype=dtype)(IMAGES.to(dtype)).dtype == dtype


def test_autocast(peer: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert make(peer)(IMAGES).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert make(peer)(IMAGES).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
def test_linear_layers_are_quantised(peer: str, dtype: torch.dtype) -> None:
    model = make(peer).eval()
    expected = model(IMAGES)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=dtype)
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    assert (quantised(IMAGES) - expected).abs().max() < 0.2 * expected.abs().max()


def test_evaluation_repeats_and_training_drops(peer: str) -> None:
    model = make(peer, drop_rate=0.5, drop_path_rate=0.5).eval()
    assert torch.equal(model(IMAGES), model(IMAGES))
    model.train()
    assert not torch.equal(model(IMAGES), model(IMAGES))
    with torch.inference_mode():
        model(IMAGES)
    backward(model(IMAGES), model)


# -- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"opt": "adamw", "layer_decay": 0.7}, {"opt": "lamb"}, {"opt": "muon"}], ids=str)
def test_optimizers_of_timm(peer: str, options: dict[str, Any]) -> None:
    model = make(peer)
    optimizer = create_optimizer_v2(model, lr=1e-2, weight_decay=0.05, **options)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    kept = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    named = dict(model.named_parameters())
    assert all(id(named[name]) in kept for name in model.no_weight_decay())
    before = copy.deepcopy(model.state_dict())
    backward(model(IMAGES), model)
    dispatch_clip_grad(model_parameters(model, exclude_head=True), 0.01, mode="agc")
    optimizer.step()
    assert not torch.equal(before["head.fc.weight"], model.state_dict()["head.fc.weight"])


def test_exclude_head_leaves_out_the_head(peer: str) -> None:
    model = make(peer)
    rest = {id(p) for p in model_parameters(model, exclude_head=True)}
    assert {name for name, p in model.named_parameters() if id(p) not in rest} == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_are_grouped(peer: str, coarse: bool) -> None:
    model = make(peer)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    assert len(groups) == (6 if coarse and peer != "hiera" else 7)  # stem, stages or blocks, classifier
    assert {name for group in groups.values() for name in group} == {name for name, _ in model.named_parameters()}


def test_freezing_by_name(peer: str) -> None:
    model = make(peer)
    names = [name for name, _ in model.named_children() if name != "head"]
    freeze(model, names)
    assert not any(p.requires_grad for p in blocks(model)[0].parameters())
    assert model.get_classifier().weight.requires_grad
    model(IMAGES).sum().backward()
    assert blocks(model)[0].norm1.weight.grad is None
    unfreeze(model, names)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("by", ["set_grad_checkpointing", "checkpoint_wrapper"])
def test_checkpointed_blocks(peer: str, by: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    plain, model = make(peer).train(), make(peer).train()
    if by == "set_grad_checkpointing":
        model.set_grad_checkpointing(True)
    else:
        apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ in BLOCKS)
    for network in (plain, model):
        backward(network(IMAGES), network)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_adapters_replace_linear_layers_by_name(peer: str) -> None:
    """As peft's LoRA does: a layer found by name gives way to one that holds it."""

    class LowRank(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    model = make(peer).eval()
    expected = model(IMAGES)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, LowRank(module))
    torch.testing.assert_close(model(IMAGES), expected)
    model(IMAGES).sum().backward()
    learning = [p.grad for p in model.parameters() if p.requires_grad]
    assert learning
    assert all(grad is not None for grad in learning)


def test_functional_calls_and_gradients_of_each_image(peer: str) -> None:
    model = make(peer).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, IMAGES)
    backward(model(IMAGES), model)
    torch.testing.assert_close(grads["head.fc.weight"].sum(0), model.get_classifier().weight.grad)


def test_second_derivatives_by_the_plain_kernel(peer: str) -> None:
    model, images = make(peer).eval(), IMAGES.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (grad,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
        backward(grad.square(), model.patch_embed)


# -- several processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"static_graph": True}], ids=str)
def test_data_parallel_finds_every_parameter_used(peer: str, options: dict[str, Any], one_process: Any) -> None:
    for model in (make(peer), make(peer, features_only=True)):
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=False, **options)
        for _ in range(2):  # the second pass fails where the first left a parameter out
            out = parallel(IMAGES)
            backward(out if isinstance(out, Tensor) else sum(map_.sum() for map_ in out), model)


def test_fully_sharded(peer: str, one_process: Any) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = make(peer).eval()
    expected = model(IMAGES)
    for module in (*blocks(model), model):
        fully_shard(module, mesh=one_process)
    out = model(IMAGES)
    torch.testing.assert_close(out, expected)
    backward(out, model)
    model = make(peer).train()
    for module in (*blocks(model), model):
        fully_shard(module, mesh=one_process, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    backward(model(IMAGES), model)


# -- graphs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", OURS)
def test_compiled_in_one_graph(peer: str) -> None:
    torch._dynamo.reset()
    model = make(peer).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES))
    backward(compiled(IMAGES), model)


def test_a_block_compiled_in_place(peer: str) -> None:
    torch._dynamo.reset()
    model = make(peer).eval()
    expected, names = model(IMAGES), list(model.state_dict())
    blocks(model)[0].compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(IMAGES), expected)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("peer", OURS)
def test_exported_and_traced(peer: str) -> None:
    model = make(peer).eval()
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("images")},))
    more = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(program.module()(more), model(more))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, IMAGES)(IMAGES), model(IMAGES))


def test_operations_are_counted(peer: str) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        make(peer)(torch.empty(1, 3, 64, 64))
    assert counter.get_total_flops() > 1e6


@pytest.mark.parametrize("peer", ["hiera", "dyvit"])  # Swin has buffers that are in no state dict
def test_weights_are_assigned_to_a_model_on_the_meta_device(peer: str) -> None:
    written = make(peer).eval()
    with torch.device("meta"):
        model = make(peer).eval()
    model.load_state_dict(written.state_dict(), assign=True)
    assert torch.equal(model(IMAGES), written(IMAGES))


# -- transformers ---------------------------------------------------------------------------------------------


def test_wrapped_by_transformers(peer: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, TimmWrapperConfig, TimmWrapperForImageClassification

    name, shape = SHAPES[peer]
    sizes = {"model_args": {**shape, "img_size": 64}, "pretrained_cfg": {"input_size": (3, 64, 64)}}
    config = TimmWrapperConfig(architecture=name, num_labels=5, **sizes)
    model = TimmWrapperForImageClassification(config)
    out = model(IMAGES, labels=torch.tensor([0, 1]), output_hidden_states=True)
    assert shapes(out.hidden_states) == [(2, 16 << s, 16 >> s, 16 >> s) for s in range(4)]
    model.train().gradient_checkpointing_enable()
    backward(model(IMAGES, labels=torch.tensor([0, 1])).loss, model)
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(IMAGES).logits, model(IMAGES).logits)


def test_a_backbone_of_transformers(peer: str) -> None:
    from transformers import TimmBackbone, TimmBackboneConfig

    name, shape = SHAPES[peer]
    config = TimmBackboneConfig(backbone=name, features_only=True, out_indices=(1, 3))
    model = TimmBackbone(config, img_size=64, **shape)
    assert model.channels == [32, 128]
    assert len(model.stage_names) == 4
    maps = model(IMAGES).feature_maps
    assert [map_.numel() for map_ in maps] == [2 * 32 * 8 * 8, 2 * 128 * 2 * 2]
