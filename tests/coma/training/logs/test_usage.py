from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coma.measure import multiply_adds
from coma.pipeline import Batch
from coma.pipeline.views import partition_units
from coma.runs.read import build_model
from coma.training.logs.usage import Sensors, Usage, memory_bytes, peak_tflops

CPU = torch.device("cpu")


class Known(nn.Module):
    """With multiply-adds that one can count by hand, attention among them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.out = nn.Linear(8, 5)

    def forward(self, images: Tensor, units: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT[:, None]  # [B, 1, T, 8]
        attended: Tensor = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.out(attended)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_multiply_adds_are_those_that_one_counts_by_hand(device: str) -> None:
    images = torch.zeros(2, 3, 16, 12, device=device)
    tokens = 4 * 3
    by_hand = tokens * 3 * 4 * 4 * 8 + 2 * tokens * tokens * 8 + tokens * 8 * 5
    assert multiply_adds(Known().to(device), images, images) == 2 * by_hand


def config(model: str, method: str, **fields: Any) -> dict[str, Any]:
    views = 1 if method == "mae" else 2
    return {"model": model, "method": method, "views": views, "image_size": 64, "patch_size": 2, **fields}


def batch(images: Tensor, units_per_image: int) -> Batch:
    samples = torch.arange(len(images))
    units = partition_units(samples, torch.zeros_like(samples), seed=0, units=units_per_image)
    return Batch(images=images, units=units, samples=samples, labels=None, view_sizes=())


@pytest.mark.parametrize("method", ["coma", "mae", "independent"])
@pytest.mark.parametrize("size", [32, 64])
def test_a_steps_flop_are_six_times_the_multiply_adds_of_its_images(method: str, size: int) -> None:
    described = config("dyvit_nano", method)
    model = build_model(described)
    given = batch(torch.randn(3, 3, size, size), (size // model.encoder.unit_size) ** 2)
    inputs = (given.images, given.units)
    figures = Usage(lambda: build_model(described), CPU, "CPU (2 threads)", "fp32").figures(inputs, step_s=0.5)
    expected = 6 * multiply_adds(model, given.images, given.units) / 0.5 / 1e12
    assert figures["model_tflops"] == pytest.approx(expected)
    assert set(figures) == {"model_tflops", "memory_gib"}


def test_the_base_on_an_h100_by_hand() -> None:
    """6.86 G multiply-adds an image: 100 images in a quarter of a second are 16.5 TFLOP/s of 989."""
    given = batch(torch.empty(100, 3, 224, 224), 49)
    described = config("dyvit_base", "coma", image_size=224, patch_size=None)
    usage = Usage(lambda: build_model(described), CPU, "NVIDIA H100 80GB HBM3", "bf16")
    figures = usage.figures((given.images, given.units), step_s=0.25)
    assert figures["model_tflops"] == pytest.approx(6 * 6.86e9 * 100 / 0.25 / 1e12, rel=1e-3)
    assert figures["mfu"] == pytest.approx(16.46 / 989.4, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.4),
        ("NVIDIA H200", "bfloat16 autocast", 989.4),
        ("NVIDIA H200", "fp32", 66.9),
        ("NVIDIA A100-SXM4-40GB", "fp16", 312.0),
        ("NVIDIA A100 80GB PCIe", "bf16", 312.0),
        ("NVIDIA L40S", "bf16", 362.1),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "float16 autocast", 165.2),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("CPU (2 threads)", "fp32", None),
    ],
)
def test_peaks_are_of_the_very_device_and_precision(name: str, precision: str, expected: float | None) -> None:
    assert peak_tflops(name, precision) == expected


def test_memory_is_what_this_process_has() -> None:
    before = memory_bytes(CPU)
    with mmap.mmap(-1, 128 << 20) as held:  # from the system: an allocator may have freed memory to give
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert memory_bytes(CPU) - before == pytest.approx(len(held), rel=0.1)


class FakeNvml:
    """Sensors of a GPU, read once a second by the clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.reads, self.fails = 0.0, 0, False
        monkeypatch.setattr(torch.cuda, "utilization", self.utilization)
        monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_500)
        monkeypatch.setattr("coma.training.logs.usage.time.monotonic", lambda: self.now_s)

    def utilization(self, device: torch.device) -> int:
        self.reads += 1
        if self.fails:
            raise ModuleNotFoundError("pynvml")
        return 87


def test_sensors_are_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(monkeypatch)
    sensors = Sensors(torch.device("cuda", 0))
    for nvml.now_s in (0.0, 0.4, 0.9, 1.1, 1.2):
        assert sensors.figures() == {"gpu_utilization": 0.87, "gpu_power_w": 250.5}
    assert nvml.reads == 2


def test_without_nvml_there_are_no_such_figures_and_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(monkeypatch)
    nvml.fails = True
    sensors = Sensors(torch.device("cuda", 0))
    for nvml.now_s in (0.0, 5.0):
        assert sensors.figures() == {}
    assert nvml.reads == 1
    assert Sensors(CPU).figures() == {}
    assert nvml.reads == 1


@pytest.mark.gpu
def test_a_gpus_own_sensors() -> None:
    pytest.importorskip("pynvml")
    figures = Sensors(torch.device("cuda", 0)).figures()
    if figures:  # a MIG slice has none
        assert 0 <= figures["gpu_utilization"] <= 1
        assert 1 < figures["gpu_power_w"] < 2000
