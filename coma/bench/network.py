"""Network of a benchmark, built of its name and method and trained a step at a time.

A step is forward, backward and a fused AdamW update. Multiply-adds are counted by torch's FlopCounterMode over one
image's forward pass (all its views, decoder included). B images a step, U mask units.
"""

import time

import torch
from torch import Tensor

from coma.errors import UsageError
from coma.measure import keep_freed_memory, kept_bytes, multiply_adds
from coma.model.build import METHODS, build
from coma.model.encoders import check_model_name
from coma.pipeline.views import partition_units
from coma.training.config.options import parse_stages
from coma.training.engine.deterministic import deterministic_kernels

IMAGENET_IMAGES = 1_281_167
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def split(model: str) -> tuple[str, str]:
    """Return name and method of "dyvit_base:coma", which are those of `coma pretrain`. Raises UsageError."""
    name, _, method = model.partition(":")
    if method not in METHODS:
        raise UsageError(
            f"--models {model!r}: say NAME:METHOD, the method {' or '.join(METHODS)}, like dyvit_base:coma"
        )
    check_model_name(name)
    return name, method


def check_models(models: tuple[str, ...]) -> None:
    """Raise UsageError unless there are networks, and each says NAME:METHOD by names of `coma pretrain`."""
    if not models:
        raise UsageError("--models names no network; give NAME:METHOD, like dyvit_base:coma")
    for model in models:
        split(model)


def check_precision(precision: str) -> None:
    """Raise UsageError unless the precision is a key of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision!r}: it must be fp32 or bf16")


class Network:
    """A network with its optimizer.

    Args:
        model: NAME:METHOD.
        image_size: pixels.
        views: number of complementary views of an image.
        device: where it is trained.
        precision: of weights and activations: fp32 or bf16.
    """

    def __init__(self, model: str, *, image_size: int, views: int, device: torch.device, precision: str) -> None:
        name, method = split(model)
        if device.type == "cpu":
            keep_freed_memory()  # as in training
        torch.manual_seed(0)
        built = build(name, method, views=views, image_size=image_size)
        self.model = built.to(device=device, dtype=PRECISIONS[precision]).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.device = device

    @property
    def parameters(self) -> int:
        """Number of parameters, the decoder's included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def has_stages(self, grad_checkpointing: str) -> bool:
        """Whether the backbone has every stage that --grad-checkpointing names."""
        return max(parse_stages(grad_checkpointing) or (0,)) <= len(self.model.encoder.stage_dims)

    def recompute(self, grad_checkpointing: str) -> None:
        """Recompute the activations of these stages in the backward pass: "none", "1,2", "all"."""
        self.model.checkpoint_stages(parse_stages(grad_checkpointing))

    def units(self, images: int) -> Tensor:
        """Return mask units [B, U] for so many images, as the network's stream would give them."""
        samples = torch.arange(images, device=self.device)
        return partition_units(samples, torch.zeros_like(samples), seed=0, units=self.model.units)

    def step(self, images: Tensor, units: Tensor) -> None:
        """Train on images [B, 3, H, W] with units [B, U], by the kernels that training uses."""
        with deterministic_kernels():
            self.model(images, units).backward()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed_step(self, images: Tensor, units: Tensor) -> float:
        """Take a step and return its wall seconds, until the device is done with it."""
        self.wait()
        begun_s = time.perf_counter()
        self.step(images, units)
        self.wait()
        return time.perf_counter() - begun_s

    def multiply_adds(self, image: Tensor) -> float:
        """Count the multiply-adds of the forward pass of one image, [1, 3, H, W]."""
        return multiply_adds(self.model, image, self.units(1))

    def memory_bytes(self, images: Tensor, units: Tensor) -> int:
        """Take a step; return a GPU's peak memory, or on a CPU what the backward pass keeps of the forward pass."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step(images, units)
            self.wait()
            return torch.cuda.max_memory_allocated(self.device)
        return kept_bytes(self.model, lambda: self.step(images, units))

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
