"""`coma plan`."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coma.cli.pretrain import pretrain
from coma.cli.training_options import RUN, Json

if TYPE_CHECKING:
    from coma.forecast.estimate import Forecast


def _with_options_of_pretrain(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take the options of `coma pretrain`, which it gets as **options, before its own."""
    own = [
        each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD
    ]
    theirs = inspect.signature(pretrain).parameters
    shared = [theirs[name] for name in theirs if name not in {"launched", *(each.name for each in own)}]
    command.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in [*shared, *own]}
    return command


@_with_options_of_pretrain
def plan(
    *,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Take a few steps to time them.", rich_help_panel=RUN),
    ] = True,
    json: Json = False,
    **options: Any,
) -> None:
    """Say what coma pretrain would take with the same options, and write nothing.

    Steps, batch, learning rate, memory, disk, and hours by a few real steps on
    images held in memory, in this process.
    """
    from coma.cli import console
    from coma.forecast.estimate import estimate
    from coma.training import PretrainConfig

    found = estimate(PretrainConfig(**options), measure=measure)
    console.print_result(found.to_json() if json else _as_lines(found), json=json)


def _as_lines(found: "Forecast") -> dict[str, str]:
    """Within 80 columns, paths aside."""
    from rich.filesize import decimal

    from coma.training.config.schedule import REFERENCE_BATCH
    from coma.training.logs.metrics import duration

    config, resolved, memory = found.config, found.resolved, found.memory
    accumulated = f" x {resolved.accumulation} accumulated" if resolved.accumulation > 1 else ""
    devices = f"{resolved.world_size} device{'s' if resolved.world_size > 1 else ''}"
    lines = {
        "data": f"{resolved.data}: {resolved.samples_per_epoch:,} images",
        "run": f"{found.run}, {f'going on at step {found.begun_at + 1:,}' if found.begun_at else 'new'}",
        "model": f"{config.model}, {config.method}: {found.parameters / 1e6:.1f} M parameters, "
        f"{found.backbone_parameters / 1e6:.1f} M of them the backbone's",
        "steps": f"{resolved.steps:,}, {resolved.epochs:.4g} epochs; {resolved.warmup_steps:,} of warm-up",
        "batch": f"{resolved.batch_size} images = {devices} x {resolved.micro_batch_size}{accumulated}",
        "learning rate": f"{resolved.peak_lr:.3g} at most = {config.base_lr:g} x {resolved.batch_size} "
        f"/ {REFERENCE_BATCH}",
        "machine": f"{found.device_name}, {resolved.precision}, ZeRO stage {resolved.stage} ({resolved.ds_config})",
        "memory": f"{_sum(found)} a {'device' if resolved.device == 'cuda' else 'process'}, "
        f"of {decimal(found.device_bytes)}",
        "  weights": decimal(memory.weights),
        "  gradients": f"{decimal(memory.gradients)}, and {decimal(memory.buckets)} to reduce them in",
        "  optimizer": decimal(memory.optimizer),
        "  activations": "not measured"
        if found.activation_bytes is None
        else f"{decimal(found.activation_bytes)}, of {resolved.micro_batch_size} images",
    }
    if memory.host:
        lines["  on the host"] = f"{decimal(memory.host)} of these"
    if memory.nvme:
        lines["  on a drive"] = f"{decimal(memory.nvme)} of these, in files of {decimal(memory.swap_files)}"
    kept, whole = found.checkpoints, decimal(found.checkpoint_bytes)
    lines["disk"] = f"{decimal((kept + 1) * found.checkpoint_bytes + found.metrics_bytes)} at most"
    lines["  checkpoints"] = (
        f"{kept} x {whole}, and one while it is written; every {resolved.save_every:,} steps"
    )
    lines["  metrics"] = decimal(found.metrics_bytes)
    if (step_s := found.step_s) is None:
        lines["time"] = "not measured"
        return lines
    left = f", {duration((resolved.steps - found.begun_at) * step_s)} left" if found.begun_at else ""
    lines["time"] = f"{duration(resolved.steps * step_s)}{left}, if the stream keeps up (coma bench loader)"
    lines["  a step"] = f"{step_s:.3g} s, {resolved.batch_size / step_s:.4g} images/s"
    return lines


def _sum(found: "Forecast") -> str:
    from rich.filesize import decimal

    known = found.memory.device + (found.activation_bytes or 0)
    return decimal(known) if found.measured else f"{decimal(known)} and activations"
