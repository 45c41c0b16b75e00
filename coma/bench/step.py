"""`coma bench step`: what a training step costs, networks side by side on the same images held in memory.

The networks take turns, round after round; a ratio is the median of the rounds' ratios, so that what else the
machine does strikes all alike. A step is forward, backward and a fused AdamW update. Multiply-adds are counted
by torch's FlopCounterMode over one image's forward pass (all its views, decoder included). B images a step.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from coma.errors import UsageError
from coma.methods import METHODS, build
from coma.pipeline.views import partition_units
from coma.training.setup import device_name

IMAGENET_IMAGES = 1_281_167
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_VIT_SUFFIX = "_patch16_224"


@dataclass(frozen=True)
class StepOptions:
    """What to measure. Raises UsageError."""

    models: tuple[str, ...] = ("dyvit_base:coma", "vit_base:mae")
    """NAME:METHOD each; ratios are to the last."""
    precisions: tuple[str, ...] = ("fp32", "bf16")
    batch_size: int = 8
    image_size: int = 224
    """Pixels."""
    views: int = 2
    rounds: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("batch_size", "image_size", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        if not self.models:
            raise UsageError("--models names no network; give NAME:METHOD, like dyvit_base:coma")
        for model in self.models:
            split(model)
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise UsageError(f"--precision {precision!r}: it must be fp32 or bf16")


@dataclass(frozen=True)
class StepTiming:
    """One network in one precision."""

    model: str
    precision: str
    parameters: int
    """Decoder included."""
    macs: float
    """Multiply-adds of one image's forward pass."""
    memory_bytes: int
    """A GPU's peak; on a CPU what the backward pass keeps of the forward pass."""
    step_s: tuple[float, ...]
    """Wall seconds of each round."""
    time_ratio: float
    """A step's time as a part of the last network's: the median of the rounds' ratios."""
    batch_size: int
    image_size: int
    """Pixels."""
    device: str

    @property
    def images_per_s(self) -> float:
        """Median."""
        return self.batch_size / statistics.median(self.step_s)

    @property
    def imagenet_epoch_h(self) -> float:
        """Hours of one epoch of ImageNet's training images at this pace."""
        return IMAGENET_IMAGES / self.images_per_s / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {
            "images_per_s": self.images_per_s,
            "imagenet_epoch_h": self.imagenet_epoch_h,
        }


def split(model: str) -> tuple[str, str]:
    """Name and method of "dyvit_base:coma"; "vit_base" is timm's vit_base_patch16_224. Raises UsageError."""
    name, _, method = model.partition(":")
    if method not in METHODS:
        raise UsageError(
            f"--models {model!r}: say NAME:METHOD, the method {' or '.join(METHODS)}, like dyvit_base:coma"
        )
    return name + _VIT_SUFFIX if name.startswith("vit_") and "patch" not in name else name, method


def bench_step(
    options: StepOptions, progress: Callable[[str, int, int], None] | None = None
) -> list[StepTiming]:
    """Measure the networks, in turn, in each precision. Raises UsageError."""
    found = []
    for precision in options.precisions:
        found += _measure(options, precision, progress or (lambda *_: None))
    return found


def _measure(
    options: StepOptions, precision: str, progress: Callable[[str, int, int], None]
) -> list[StepTiming]:
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), PRECISIONS[precision]
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=device)
    networks = {model: _Network(model, options, device, dtype) for model in options.models}
    macs = {model: network.multiply_adds(images[:1]) for model, network in networks.items()}
    memory = {model: network.memory_bytes(images) for model, network in networks.items()}
    times: dict[str, list[float]] = {model: [] for model in networks}
    for number in range(-1, options.rounds):  # the first round finds memory that no network has touched yet
        for model, network in networks.items():
            progress(f"{model} {precision}", max(0, number), options.rounds)
            step_s = network.timed_step(images)
            if number >= 0:
                times[model].append(step_s)
    reference = times[options.models[-1]]
    return [
        StepTiming(
            model=model,
            precision=precision,
            parameters=sum(parameter.numel() for parameter in network.model.parameters()),
            macs=macs[model],
            memory_bytes=memory[model],
            step_s=tuple(times[model]),
            time_ratio=statistics.median(a / b for a, b in zip(times[model], reference, strict=True)),
            batch_size=options.batch_size,
            image_size=options.image_size,
            device=device_name(device),
        )
        for model, network in networks.items()
    ]


class _Network:
    """A network with its optimizer, and the units that its stream would give it."""

    def __init__(self, model: str, options: StepOptions, device: torch.device, dtype: torch.dtype) -> None:
        name, method = split(model)
        torch.manual_seed(0)
        built = build(name, method, views=options.views, image_size=options.image_size)
        self.model: nn.Module = built.to(device=device, dtype=dtype).train()
        samples = torch.arange(options.batch_size, device=device)
        self.units = partition_units(samples, torch.zeros_like(samples), seed=0, units=built.units)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.device = device

    def step(self, images: Tensor) -> None:
        self.model(images, self.units[: len(images)]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed_step(self, images: Tensor) -> float:
        """Wall seconds."""
        self._wait()
        begun_s = time.perf_counter()
        self.step(images)
        self._wait()
        return time.perf_counter() - begun_s

    def multiply_adds(self, image: Tensor) -> float:
        kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
            self.model(image, self.units[:1])
        return float(counter.get_total_flops() / 2)

    def memory_bytes(self, images: Tensor) -> int:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step(images)
            self._wait()
            return torch.cuda.max_memory_allocated(self.device)
        kept: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            self.step(images)
        return sum(kept.values())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the CPU's fused kernel, which the counter does not know. Shapes come in."""
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]
