"""A training step of each network in bf16, eager and compiled, on images held in the device's memory.

One network at a time has the device, so that the peak of memory is its own. A step is that of `coma bench step`:
forward, backward and a fused AdamW update. What was measured before a cut is not measured again; eager steps come
first, as compiling takes most of the time.
"""

import gc
import itertools
import statistics
import time

import torch

from benchmarks.gpu.part import Measuring
from benchmarks.gpu.record import Row
from coma.bench.network import Network
from coma.training.logs.usage import peak_tflops
from coma.training.setup import device_name

MODELS = (
    "dyvit_base:coma",
    "vit_base_patch16_224:mae",
    "dyvit_small:coma",
    "dyvit_large:coma",
    "vit_large_patch16_224:mae",
)
_QUICK_MODELS = ("dyvit_nano:coma", "vit_tiny_patch16_224:mae")
_FLOP_PER_MULTIPLY_ADD = 2 * 3  # forward, and twice as much backward
_COMPILING_S = 45.0  # less than that left, and nothing more is compiled
_PRECISION = "bf16"


def measure_step(measuring: Measuring) -> None:
    """Measure each network at each batch size, eager, then compiled."""
    models, batches = (_QUICK_MODELS, (2,)) if measuring.quick else (MODELS, (256, 64))
    for compiled, batch_size, model in itertools.product((False, True), batches, models):
        if measuring.quick and compiled and model != models[0]:
            continue
        key: Row = {"network": model, "batch": batch_size, "compiled": compiled}
        what = f"{model} {batch_size}{' compiled' if compiled else ''}"
        if measuring.has(**key) or not measuring.time_for(what, _COMPILING_S if compiled else 5.0):
            continue
        measuring.put(key, **_measured(measuring, model, batch_size, compiled=compiled))
        gc.collect()
        torch._dynamo.reset()
        if measuring.on_gpu:
            torch.cuda.empty_cache()
    rates = {
        f"{row['network']}, {row['batch']}{', compiled' if row['compiled'] else ''}": rate
        for row in measuring.rows
        if isinstance(rate := row.get("images_per_s"), float)
    }
    measuring.bars("Images trained on a second, bf16", rates)
    measuring.note(
        "peak: allocated by tensors; reserved: by torch's allocator; first step: with compiling; MFU: 6 times the "
        "multiply-adds of the forward pass, relative to the device's dense bf16 peak"
    )


def _measured(measuring: Measuring, model: str, batch_size: int, *, compiled: bool) -> Row:
    """Return a row's figures; of a step that does not fit, that it does not."""
    size = 64 if measuring.quick else 224
    try:
        network = Network(model, image_size=size, views=2, device=measuring.device, precision=_PRECISION)
        images = torch.randn(batch_size, 3, size, size, device=measuring.device)
        units, macs = network.units(batch_size), network.multiply_adds(images[:1])
        if compiled:
            # as `coma pretrain --compile`: inductor, whose code a rehearsal does without
            network.model.compile(dynamic=False, backend="aot_eager" if measuring.quick else "inductor")
        began_s = time.perf_counter()
        network.timed_step(images, units)
        first_s = time.perf_counter() - began_s
        if measuring.on_gpu:
            torch.cuda.reset_peak_memory_stats(measuring.device)
        times_s = _times_s(measuring, network, images, units)
    except torch.OutOfMemoryError as error:
        return {"fits": False, "failed": str(error).splitlines()[0][:200]}
    except Exception as error:  # a compiler that fails is a result too
        return {"fits": None, "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]}
    step_s = statistics.median(times_s)
    tflops = macs * _FLOP_PER_MULTIPLY_ADD * batch_size / step_s / 1e12
    peak = peak_tflops(device_name(measuring.device), _PRECISION)
    memory: dict[str, float] = {}
    if measuring.on_gpu:
        free, total = torch.cuda.mem_get_info(measuring.device)
        memory = {
            "peak_gb": torch.cuda.max_memory_allocated(measuring.device) / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved(measuring.device) / 1e9,
            "used_gb": (total - free) / 1e9,
        }
    return {
        "fits": True,
        "images_per_s": batch_size / step_s,
        "step_ms": step_s * 1e3,
        "least_ms": min(times_s) * 1e3,
        "most_ms": max(times_s) * 1e3,
        "steps": len(times_s),
        **memory,
        "tflops": tflops,
        "mfu": None if peak is None else tflops / peak,
        "first_step_s": first_s,
        "mparams": network.parameters / 1e6,
        "gmacs": macs / 1e9,
    }


def _times_s(measuring: Measuring, network: Network, images: torch.Tensor, units: torch.Tensor) -> list[float]:
    """Time single steps, on a GPU by its own clock, in one queue without waiting between them."""
    warmup, most, least_s = (1, 2, 0.0) if measuring.quick else (3, 40, 3.0)
    for _ in range(warmup):
        step_s = network.timed_step(images, units)
    steps = max(2 if measuring.quick else 8, min(most, int(least_s / step_s)))
    if not measuring.on_gpu:
        return [network.timed_step(images, units) for _ in range(steps)]
    events = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(steps + 1)
    ]
    events[0].record()  # type: ignore[no-untyped-call]
    for event in events[1:]:
        network.step(images, units)
        event.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(measuring.device)
    pairs = itertools.pairwise(events)
    return [before.elapsed_time(after) / 1e3 for before, after in pairs]  # type: ignore[no-untyped-call]
