"""torch.compile takes the whole of the method as one graph."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn

from coma.model.build import build


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_one_graph(model: nn.Module, *inputs: Any) -> None:
    explained = torch._dynamo.explain(model)(*inputs)
    assert explained.graph_break_count == 0, [reason.reason for reason in explained.break_reasons]
    assert explained.graph_count == 1


@pytest.mark.parametrize(
    ("model", "method", "options"),
    [
        ("dyvit_nano", "coma", {"views": 2}),
        ("dyvit_nano", "coma", {"views": 4, "predict": 1}),
        ("dyvit_nano", "independent", {"views": 3}),
        ("dyvit_nano", "mae", {}),
        ("vit_tiny_patch16_224", "mae", {"depth": 2}),
        ("vit_tiny_patch16_224", "coma", {"patch_size": 8, "backbone_args": {"reg_tokens": 2, "depth": 2}}),
    ],
)
def test_encoder_decoder_and_loss_are_one_graph(model: str, method: str, options: dict[str, Any]) -> None:
    network = build(model, method, image_size=96, **options)
    units = torch.rand(2, network.units).argsort(dim=1)
    assert_one_graph(network, torch.randn(2, 3, 96, 96), units)


def test_the_backbone_is_one_graph() -> None:
    model = timm.create_model("dyvit_nano", num_classes=5)
    assert_one_graph(model, torch.randn(1, 3, 64, 96))


def test_compiled_it_computes_the_same() -> None:
    network = build("dyvit_nano", image_size=96, views=3)
    images, units = torch.randn(2, 3, 96, 96), torch.rand(2, 9).argsort(dim=1)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, units), network(images, units))


def test_independent_masks_are_the_same_in_compiled_code() -> None:
    """By the compiler itself, which would not wrap the hash around at 64 bits."""
    network = build("dyvit_nano", "independent", image_size=96, views=3)
    units = torch.rand(4, 9).argsort(dim=1)
    compiled = torch.compile(network.split_units, fullgraph=True, dynamic=False)
    for mine, expected in zip(compiled(units), network.split_units(units), strict=True):
        assert torch.equal(torch.cat(mine, dim=1), torch.cat(expected, dim=1))
        assert len({tuple(row.tolist()) for row in torch.cat(expected, dim=1)}) == 4


def test_a_graph_a_crop_size() -> None:
    network = build("dyvit_nano", image_size=128, views=2)
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, backend=counting, fullgraph=True, dynamic=False)
    for side in (96, 128, 96):
        units = torch.rand(2, (side // 32) ** 2).argsort(dim=1)
        compiled(torch.randn(2, 3, side, side), units)
    assert len(graphs) == 2
