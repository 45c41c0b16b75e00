"""Activation checkpointing: fewer activations are kept, and losses and gradients are to the last bit the same."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from coma.errors import UsageError
from coma.measure import kept_bytes
from coma.model.build import build
from coma.model.classifier import Classifier
from coma.model.encoders import checkpoint_stages

NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "coma": ("dyvit_nano", "coma", {"views": 2, "drop_path_rate": 0.5}),
    "uneven": ("dyvit_nano", "coma", {"views": 4, "predict": 1, "decoder_depth": 2}),
    "mae": ("dyvit_nano", "mae", {"drop_path_rate": 0.5}),
    "vit": ("vit_tiny_patch16_224", "mae", {"depth": 3, "drop_path_rate": 0.5}),
    "vit in views": ("vit_tiny_patch16_224", "coma", {"depth": 3}),
}


def step(network: Any, stages: Collection[int] | None, *, compiled: bool = False) -> tuple[Tensor, list[Tensor], int]:
    """Return the loss, the gradients and the bytes kept of a step on three images with these stages recomputed."""
    network.checkpoint_stages(stages)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 96, 96, generator=generator)
    units = torch.rand(3, network.units, generator=generator).argsort(dim=1)
    called = torch.compile(network, backend="aot_eager", fullgraph=True) if compiled else network
    losses: list[Tensor] = []
    torch.manual_seed(1)
    kept = kept_bytes(network, lambda: losses.append(called(images, units)))
    torch.manual_seed(2)  # what is drawn again is what was drawn, whatever the generator is at
    network.zero_grad()
    losses[0].backward()
    return losses[0].detach(), [parameter.grad.clone() for parameter in network.parameters()], kept


def network_of(name: str) -> Any:
    torch.manual_seed(0)
    model, method, options = NETWORKS[name]
    return build(model, method, image_size=96, **options).train()


@pytest.mark.parametrize("stages", [(1, 2), (3,), None])
@pytest.mark.parametrize("name", ["coma", "uneven", "mae"])
def test_recomputed_stages_change_no_bit_and_keep_less(name: str, stages: tuple[int, ...] | None) -> None:
    network = network_of(name)
    loss, gradients, kept = step(network, ())
    again, gradients_again, kept_again = step(network, stages)
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, gradients_again))
    assert kept_again < {(1, 2): 0.65, (3,): 0.8, None: 0.25}[stages] * kept
    assert step(network, ())[2] == kept


@pytest.mark.parametrize("name", ["vit", "vit in views"])
def test_a_vit_is_one_stage(name: str) -> None:
    network = network_of(name)
    loss, gradients, kept = step(network, ())
    for stages, most in (((1,), 0.9), (None, 0.4)):
        again, gradients_again, kept_again = step(network, stages)
        assert torch.equal(loss, again)
        assert all(map(torch.equal, gradients, gradients_again))
        assert kept_again < most * kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coma", "vit"])
def test_compiled_too(name: str) -> None:
    torch._dynamo.reset()
    network = network_of(name)
    for module in network.modules():
        module.rate = 0.0  # compiled code draws other numbers
    loss, gradients, _ = step(network, ())
    again, gradients_again, _ = step(network, None, compiled=True)
    torch._dynamo.reset()
    torch.testing.assert_close(loss, again)
    for gradient, other in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["dyvit_nano", "vit_tiny_patch16_224"])
def test_a_classifier_is_recomputed_as_well(model: str) -> None:
    torch.manual_seed(0)
    network = Classifier(model, 5, img_size=64, drop_path_rate=0.5).train()
    images, targets, losses, kept = torch.randn(2, 3, 64, 64), torch.eye(5)[:2], [], []
    for stages in ((), (1,), None):
        checkpoint_stages(network.backbone, stages)
        torch.manual_seed(1)
        kept.append(kept_bytes(network, lambda: losses.append(network(images, targets))))
    assert torch.equal(losses[0], losses[2])
    assert kept[0] > kept[1] >= kept[2]
    gradients = []
    for loss in losses:
        network.zero_grad()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(map(torch.equal, gradients[0], gradients[1]))
    assert all(map(torch.equal, gradients[0], gradients[2]))


def test_nothing_is_recomputed_in_evaluation() -> None:
    network = network_of("coma")
    _, _, kept = step(network.eval(), ())
    assert step(network, None)[2] == kept


@pytest.mark.parametrize(
    ("model", "options", "stages", "said"),
    [
        ("dyvit_nano", {}, (1, 5), "names stage 5, and this backbone has 4 stages: use some of 1 to 4, or all"),
        ("vit_tiny_patch16_224", {"depth": 1}, (1, 2), "names stage 2, and this backbone has one stage: use 1 or all"),
    ],
)
def test_a_stage_that_is_not_there_is_refused(
    model: str, options: dict[str, Any], stages: tuple[int, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        build(model, "mae", image_size=64, **options).checkpoint_stages(stages)
