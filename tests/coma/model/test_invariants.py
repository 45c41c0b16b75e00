"""What the design promises, of every variant as it is shipped, in both precisions, for one to four views.

The other tests show the same on narrow networks, one property at a time and closer to the code; here nothing is
scaled down but the images (4 or 6 mask units) and the decoder is the variant's own.
"""

import pytest
import torch
from torch import Tensor, nn

import coma.model.attention
from coma import CoMA
from coma.model.attention import MultiWindowAttention, attend_within
from coma.model.dyvit import DyViT
from coma.pipeline.views import partition_units, view_sizes

SIZES = {
    "dyvit_nano": (64, 96),
    "dyvit_tiny": (64, 96),
    "dyvit_small": (64, 64),
    "dyvit_base": (64, 64),
    "dyvit_large": (64, 64),
}
VARIANTS = [pytest.param((name, dtype), id=f"{name}-{dtype}") for name in SIZES for dtype in ("fp32", "bf16")]
VIEWS = (1, 2, 3, 4)


@pytest.fixture(scope="module", params=VARIANTS)
def network(request: pytest.FixtureRequest) -> CoMA:
    """With gates and positions that are not at their quiet start."""
    name, dtype = request.param
    torch.manual_seed(0)
    model = CoMA(name, img_size=SIZES[name]).eval()
    for parameter_name, parameter in model.named_parameters():
        if "gate" in parameter_name or "position" in parameter_name:
            nn.init.normal_(parameter, std=0.5)
    return model.bfloat16() if dtype == "bf16" else model


@pytest.fixture
def backbone(network: CoMA) -> DyViT:
    assert isinstance(network.backbone, DyViT)
    return network.backbone


def batch(network: CoMA, images: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    units = partition_units(torch.arange(images), torch.zeros(images).long(), seed=0, units=network.units)
    return torch.randn(images, 3, *network.img_size), units


def assert_same(a: Tensor, b: Tensor) -> None:
    """Up to rounding, which deep networks with gates off their quiet start amplify; a leak costs 0.4 and more."""
    bound = 1e-4 if a.dtype == torch.float32 else 0.05
    assert a.shape == b.shape
    assert (a.float() - b.float()).norm() < bound * b.float().norm()


def places(sizes: tuple[int, ...]) -> list[slice]:
    stops = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("views", VIEWS[1:])
def test_every_unit_is_in_one_view_and_predicted_by_all_others(name: str, views: int) -> None:
    with torch.device("meta"):
        network = CoMA(name, img_size=SIZES[name], views=views)
    units = partition_units(torch.arange(16), torch.zeros(16).long(), seed=0, units=network.units)
    for times in range(1, views):
        network.predict = times
        visible, hidden = (
            torch.zeros(16, network.units, dtype=torch.long).scatter_add(1, each, torch.ones_like(each))
            for each in (torch.cat(part, dim=1) for part in network.split_units(units))
        )
        assert (visible == 1).all()
        assert (hidden == times).all()


@pytest.mark.parametrize("views", VIEWS)
def test_a_views_memory_feels_all_that_it_sees_and_nothing_that_it_hides(
    network: CoMA, backbone: DyViT, views: int
) -> None:
    image, units = batch(network)
    images = image.repeat(views, 1, 1, 1).requires_grad_()  # image k is asked for view k alone
    sizes = view_sizes(network.units, views)
    memory = network.decoder.memory(backbone.encode(images, units.repeat(views, 1), sizes))
    asked = memory.float().unflatten(1, (network.units, -1)) * torch.randn(network.decoder.tokens, memory.shape[-1])
    sum(asked[k, place].sum() for k, place in enumerate(places(sizes))).backward()
    felt = backbone.unit_patches(images.grad).abs().amax(dim=(2, 3))  # [K, U]
    for k, place in enumerate(places(sizes)):
        seen = torch.zeros(network.units, dtype=torch.bool).scatter(0, units[0, place], True)
        assert (felt[k, seen] > 0).all()
        assert (felt[k, ~seen] == 0).all()


@pytest.mark.parametrize("views", VIEWS)
@torch.no_grad()
def test_a_view_alone_is_its_slice_of_the_joint_pass(network: CoMA, backbone: DyViT, views: int) -> None:
    images, units = batch(network, 2)
    sizes = view_sizes(network.units, views)
    joint = backbone.encode(images, units, sizes)
    for place in places(sizes):
        for alone, together in zip(backbone.encode(images, units[:, place]), joint, strict=True):
            assert_same(alone, together.unflatten(1, (network.units, -1))[:, place].flatten(1, 2))


@torch.no_grad()
def test_one_view_is_the_plain_backbone_in_whatever_order_units_lie(network: CoMA, backbone: DyViT) -> None:
    images, units = batch(network, 2)
    plain, laid = backbone.encode(images), backbone.encode(images, units, (network.units,))
    for a, b in zip(laid, plain, strict=True):
        by_unit = b.unflatten(1, (network.units, -1))
        assert_same(a, torch.stack([by_unit[i, units[i]] for i in range(2)]).flatten(1, 2))
    h, w = backbone.unit_grid(*network.img_size)
    final = backbone.forward_features(images)
    assert torch.equal(final.flatten(1, 2), plain[-1])
    assert final.shape == (2, h, w, backbone.num_features)


@pytest.mark.parametrize("views", VIEWS)
@torch.no_grad()
def test_order_inside_views_and_of_views_changes_nothing(network: CoMA, backbone: DyViT, views: int) -> None:
    images, units = batch(network)
    sizes = view_sizes(network.units, views)
    moved = torch.cat([torch.arange(network.units)[place].flip(0) for place in reversed(places(sizes))])
    straight = backbone.encode(images, units, sizes)
    turned = backbone.encode(images, units[:, moved], sizes[::-1])
    for a, b in zip(straight, turned, strict=True):
        assert_same(b, a.unflatten(1, (network.units, -1))[:, moved].flatten(1, 2))


@torch.no_grad()
def test_zero_gate_equals_no_gate(network: CoMA, backbone: DyViT, monkeypatch: pytest.MonkeyPatch) -> None:
    def concatenate(layer: MultiWindowAttention, x: Tensor, view_tokens: list[int]) -> Tensor:
        kv, parts = layer.kv(x).chunk(2 * len(layer.groups), dim=-1), [x.shape[1]]
        groups = enumerate(zip(layer.groups, layer.q, strict=True))
        outs = [
            attend_within(q(x), kv[2 * g], kv[2 * g + 1], group.window, parts if group.window else view_tokens)
            for g, (group, q) in groups
        ]
        return layer.proj(torch.cat(outs, dim=-1))

    images, units = batch(network)
    layers = [layer for layer in backbone.modules() if isinstance(layer, MultiWindowAttention) and layer.gate]
    assert len(layers) == sum(len(stage.blocks) for stage in backbone.stages[:3])
    gated, weights = backbone.encode(images, units), [layer.gate.weight.clone() for layer in layers]
    try:
        for layer in layers:
            layer.init_gate()
        zero = backbone.encode(images, units)
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.gate.weight.copy_(weight)
    monkeypatch.setattr(MultiWindowAttention, "forward", concatenate)
    for a, b, c in zip(zero, backbone.encode(images, units), gated, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@torch.no_grad()
def test_folded_multi_query_equals_expanded_keys_and_values(
    network: CoMA, backbone: DyViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expanded(
        q: Tensor, k: Tensor, v: Tensor, window: int | None, parts: tuple[int, ...], weights: Tensor | None = None
    ) -> Tensor:
        b, n, d = k.shape
        windows = [window] * (n // window) if window else parts
        allowed = torch.block_diag(*[torch.ones(size, size) for size in windows]).bool()
        q = q.reshape(b, n, -1, d).transpose(1, 2)  # [B, H, N, D]
        k, v = (t[:, None].expand(q.shape) for t in (k, v))
        scores = (q * d**-0.5 @ k.transpose(-1, -2)).masked_fill(~allowed, float("-inf"))
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        return out if weights is None else out * weights

    images, units = batch(network)
    sizes = view_sizes(network.units, 3)
    folded = backbone.encode(images, units, sizes)
    monkeypatch.setattr(coma.model.attention, "attend_within", expanded)
    for a, b in zip(folded, backbone.encode(images, units, sizes), strict=True):
        assert_same(a, b)
