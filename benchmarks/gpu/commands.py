"""What `coma pretrain` does on this machine, by its own metrics: forecasts, memory by flag, growing crops."""

import dataclasses
import itertools
import statistics
import subprocess

from benchmarks.gpu.coma_command import GIB, CommandFailed, options, plan, pretrain, typical
from benchmarks.gpu.part import Measuring
from benchmarks.gpu.record import Row
from coma.training import PretrainConfig

_UNCOUNTED = 5
"""Steps at a run's start, which find memory and kernels that none has used before."""


def measure_plan(measuring: Measuring) -> None:
    """Ask `coma plan`, then train a few steps with the same options."""
    networks = [("dyvit_base", "coma", 128), ("vit_base_patch16_224", "mae", 128), ("dyvit_small", "coma", 256)]
    for model, method, batch_size in [("dyvit_nano", "coma", 4)] if measuring.quick else networks:
        key: Row = {"network": f"{model}:{method}", "batch": batch_size}
        if measuring.has(**key) or not measuring.time_for(f"{model}:{method}", 40.0):
            continue
        size = {"model": model, "method": method, "batch_size": batch_size, "steps": 4 if measuring.quick else 30}
        words = options(measuring, **size, image_size=224)
        try:
            said = plan(measuring, f"plan-{model}", words)
            done = typical(pretrain(measuring, f"run-{model}", words), _UNCOUNTED)
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            measuring.put(key, failed=str(error))
            continue
        working_ms = done["step_ms"] - done["waiting_ms"]
        measuring.put(
            key,
            plan_step_ms=1e3 * said["step_s"],
            run_step_ms=done["step_ms"],
            of_it_waiting_ms=done["waiting_ms"],
            time_ratio=1e3 * said["step_s"] / working_ms,
            plan_gb=said["device_memory_bytes"] / 1e9,
            run_gb=done["memory_gb"],
            memory_ratio=said["device_memory_bytes"] / 1e9 / done["memory_gb"],
            of_plan_activations_gb=said["activations_bytes"] / 1e9,
            of_plan_buckets_gb=said["buckets_bytes"] / 1e9,
        )
    measuring.note("ratios: the plan's as a multiple of the run's, its steps without waiting for the stream")
    measuring.note("run gb: the peak that tensors took on a GPU; on a CPU the process's resident memory")


def measure_memory(measuring: Measuring) -> None:
    """Train a few steps with each flag that saves memory, as far as this version has them."""
    fields = {field.name for field in dataclasses.fields(PretrainConfig)}
    batch_size = 4 if measuring.quick else 256
    flags: list[dict[str, object]] = [{}]
    if "grad_checkpointing" in fields:
        flags += [{"grad_checkpointing": "1,2"}, {"grad_checkpointing": "all"}]
    if "micro_batch_size" in fields:
        flags += [{"micro_batch_size": batch_size // 4}, {"micro_batch_size": "auto"}]
    flags = flags[:2] if measuring.quick else flags
    if len(flags) == 1:
        measuring.skip("this version has neither --grad-checkpointing nor --micro-batch-size")
        return
    model = "dyvit_nano" if measuring.quick else "dyvit_base"
    for given in flags:
        name = _words(given)
        if measuring.has(flag=name) or not measuring.time_for(name, 30.0):
            continue
        steps = 3 if measuring.quick else 20
        words = options(measuring, model=model, batch_size=batch_size, image_size=224, steps=steps)
        try:
            done = typical(pretrain(measuring, f"memory-{len(measuring.rows)}", [*words, *_options(given)]), _UNCOUNTED)
        except CommandFailed as error:
            measuring.put({"flag": name}, failed=str(error))
            continue
        first = measuring.row(flag=_words({})) or {}
        before = {name: first.get(name) or done[name] for name in ("memory_gb", "step_ms")}
        measuring.put(
            {"flag": name},
            step_ms=done["step_ms"],
            memory_gb=done["memory_gb"],
            time_ratio=done["step_ms"] / float(before["step_ms"]),
            memory_ratio=done["memory_gb"] / float(before["memory_gb"]),
            images_per_s=done["images_per_s"],
        )
    measuring.note(f"{model}, {batch_size} images a step, all of the method's views; ratios to the run without a flag")


def _options(given: dict[str, object]) -> list[str]:
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _words(given: dict[str, object]) -> str:
    return " ".join(_options(given)) or "none"


def measure_crops(measuring: Measuring) -> None:
    """Train with crops that grow, eager and compiled; a row for each size."""
    batch_size = 4 if measuring.quick else 128
    for compiled in (False, True):
        run = "compiled" if compiled else "eager"
        if measuring.has(run=run) or (compiled and measuring.quick):
            continue
        if not measuring.time_for(run, 100.0 if compiled else 20.0):
            continue
        model = "dyvit_tiny" if compiled else "dyvit_small"  # compiling takes as long as a network is deep
        model = "dyvit_nano" if measuring.quick else model
        words = options(
            measuring, model=model, image_size=224, batch_size=batch_size, steps=5 if measuring.quick else 60
        )
        first = 32 if measuring.quick else 160 if compiled else 128
        words += ["--start-size", str(first), *(["--compile"] if compiled else [])]
        try:
            lines = pretrain(measuring, run, words, TORCH_LOGS="recompiles")
        except CommandFailed as error:
            measuring.put({"run": run}, failed=str(error))
            continue
        for size, group in itertools.groupby(lines, key=lambda line: line["image_size"]):
            steps = list(group)
            later = [line["step_s"] for line in steps[1:]] or [steps[0]["step_s"]]
            measuring.add(
                run=run,
                network=model,
                image_size=size,
                steps=len(steps),
                step_ms=1e3 * statistics.median(later),
                images_per_s=batch_size / statistics.median(later),
                first_step_s=steps[0]["step_s"],
                memory_gb=max(line["memory_gib"] for line in steps) * GIB / 1e9,
            )
        text = (measuring.scratch / f"{run}.log").read_text(errors="replace")
        measuring.note(f"{run}: {text.count('Recompiling function')} recompilations in torch's log")
