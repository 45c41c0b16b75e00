"""Utilization of a device: achieved model FLOP/s, their share of its peak (MFU), memory, and what NVML says.

The FLOPs are those that the model needs, not those executed: 2 per multiply-add, and twice the forward pass for the
backward pass (PaLM, arXiv 2204.02311, appendix B). Recomputation and waiting lower the rate, never raise it.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from coma.measure import multiply_adds

_FLOP_PER_MULTIPLY_ADD = 2
_PASSES = 3
"""Forward, and backward, which counts twice: gradients of the inputs and of the weights."""
_GIB = 1 << 30
_SENSORS_EVERY_S = 1.0

_PEAKS: tuple[tuple[str, float, float | None, float], ...] = (
    # name, fp16, bf16, fp32; the longer names first
    ("NVIDIA B200", 2250.0, 2250.0, 75.0),
    ("NVIDIA H200 NVL", 835.5, 835.5, 60.0),
    ("NVIDIA H200", 989.4, 989.4, 66.9),
    ("NVIDIA H100 NVL", 835.5, 835.5, 60.0),
    ("NVIDIA H100 PCIe", 756.4, 756.4, 51.2),
    ("NVIDIA H100 80GB HBM3", 989.4, 989.4, 66.9),
    ("NVIDIA A100", 312.0, 312.0, 19.5),
    ("NVIDIA A40", 149.7, 149.7, 37.4),
    ("NVIDIA A10", 125.0, 125.0, 31.2),
    ("NVIDIA L40S", 362.1, 362.1, 91.6),
    ("NVIDIA L4", 121.0, 121.0, 30.3),
    ("NVIDIA RTX A6000", 154.8, 154.8, 38.7),
    ("NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6),
    ("NVIDIA GeForce RTX 3090", 71.0, 71.0, 35.6),
    ("Tesla V100-SXM2", 125.0, None, 15.7),
    ("Tesla V100-PCIE", 112.0, None, 14.0),
    ("Tesla T4", 65.0, None, 8.1),
)
_BUILD = r"([ -](SXM\d?|PCI[Ee]|\d+GB|HBM\w+))*"
"""Suffixes of a name that do not change the peak; a laptop's GPU, a MIG slice or a "4090 D" are other devices."""


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Return a GPU's peak rate in TFLOP/s at a run's precision; None where it is not known.

    It is that of dense matrix products, summed in float32, without sparsity, at the boost clock; of float32 without
    TF32, which torch leaves off. The figures are from NVIDIA's data sheets, and for GeForce and RTX cards
    from the appendices of its white papers on the Ada and Ampere (GA102) architectures.
    """
    for name, fp16, bf16, fp32 in _PEAKS:
        if re.fullmatch(re.escape(name) + _BUILD, device_name):
            half = {"fp16": fp16, "float16 autocast": fp16, "bf16": bf16, "bfloat16 autocast": bf16}
            return fp32 if precision == "fp32" else half.get(precision)
    return None


class Usage:
    """Computes the utilization of this process's device from the duration of steps; `build` makes the network."""

    def __init__(self, build: Callable[[], nn.Module], device: torch.device, device_name: str, precision: str) -> None:
        self._build = build
        self._device = device
        self._peak_tflops = peak_tflops(device_name, precision)
        self._macs: dict[int, float] = {}
        self._sensors = Sensors(device)

    def figures(self, inputs: Sequence[Tensor], step_s: float) -> dict[str, float]:
        """Return `model_tflops`, `mfu` where the peak is known, `memory_gib` and `Sensors.figures`, after a step."""
        tflops = self._flop_per_image(inputs) * len(inputs[0]) / step_s / 1e12
        share = {} if self._peak_tflops is None else {"mfu": tflops / self._peak_tflops}
        memory = {"memory_gib": memory_bytes(self._device) / _GIB}
        return {"model_tflops": tflops, **share, **memory, **self._sensors.figures()}

    def _flop_per_image(self, inputs: Sequence[Tensor]) -> float:
        """Return FLOPs of a training step per image, counted once for each crop size on the meta device."""
        size = inputs[0].shape[-1]
        if size not in self._macs:
            self._macs[size] = multiply_adds(self._network, *(rows[:1].to("meta") for rows in inputs))
        return self._macs[size] * _FLOP_PER_MULTIPLY_ADD * _PASSES

    @functools.cached_property
    def _network(self) -> nn.Module:
        with torch.device("meta"):
            return self._build()


class Sensors:
    """What NVML, the library of nvidia-smi, measures of a GPU; nothing without nvidia-ml-py, or where it fails."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._works = device.type == "cuda"
        self._read_s = -math.inf
        self._figures: dict[str, float] = {}

    def figures(self) -> dict[str, float]:
        """Return `gpu_utilization`, 0 to 1, and `gpu_power_w`, which are read at most once a second."""
        now_s = time.monotonic()
        if self._works and now_s - self._read_s >= _SENSORS_EVERY_S:
            self._read_s = now_s
            try:
                share, milliwatts = torch.cuda.utilization(self._device), torch.cuda.power_draw(self._device)
                self._figures = {"gpu_utilization": share / 100, "gpu_power_w": milliwatts / 1000}
            except Exception:  # NVML's own errors too: a MIG slice, for one, has no sensors
                self._works, self._figures = False, {}
        return self._figures


def memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated tensors on a GPU, or the current resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
