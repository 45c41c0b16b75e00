"""`coma plan`."""

from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.errors import shell_command
from coma.shards.byte_sizes import parse_bytes
from coma.shards.option import words_of
from coma.training import PretrainConfig
from coma.training.processes.stdout import quiet_stdout

if TYPE_CHECKING:
    from coma.forecast.estimate import Forecast

Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Take a few steps to measure time.")]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory of each GPU, such as 80GB, to forecast for GPUs that are not here.",
        metavar="BYTES",
        show_default="that of the device here",
    ),
]


@from_options(PretrainConfig, file=True)
def plan(
    config: PretrainConfig, measure: Measure = True, device_memory: DeviceMemory = None, json: Json = False
) -> None:
    """Forecast what coma pretrain takes, and write nothing.

    The options are those of coma pretrain; the forecast is of steps, batch,
    learning rate, memory, disk and hours. Time comes from a few real steps on
    images held in memory, in this process. With --device-memory give
    --batch-size and --precision too, as they follow the device.
    """
    memory = None if device_memory is None else parse_bytes(device_memory, "--device-memory")
    with console.working("taking a few steps" if measure else "building the network"), quiet_stdout():
        from coma.forecast.estimate import estimate

        forecast = estimate(config, measure=measure, device_memory=memory)
    if json:
        console.print_result(forecast.to_json(), json=True)
        return
    console.print_result(_as_lines(forecast), json=False)
    console.print_result(
        _what_fits(forecast), json=False, following=shell_command("coma", "pretrain", *words_of(config))
    )


def _as_lines(forecast: "Forecast") -> dict[str, str]:
    """Return the forecast as lines of at most 80 columns, paths aside."""
    from rich.filesize import decimal

    from coma.training.config.schedule import REFERENCE_BATCH
    from coma.training.logs.metrics import duration

    config, resolved, memory = forecast.config, forecast.resolved, forecast.footprint.state
    accumulated = f" x {resolved.accumulation} accumulated" if resolved.accumulation > 1 else ""
    devices = f"{resolved.world_size} device{'s' if resolved.world_size > 1 else ''}"
    init = forecast.init
    start = {} if init is None else {"start": f"{init['source']}: {init['taken'].partition(';')[0]}"}
    data = resolved.data if isinstance(resolved.data, str) else " ".join(resolved.data)
    lines = {
        "data": f"{data}: {resolved.samples_per_epoch:,} images",
        "run": f"{forecast.run}, {f'resumed at step {forecast.begun_at + 1:,}' if forecast.begun_at else 'new'}",
        "model": f"{config.model}, {config.method}: {forecast.parameters / 1e6:.1f} M parameters, "
        f"{forecast.backbone_parameters / 1e6:.1f} M of them the backbone's",
        **start,
        "steps": f"{resolved.steps:,}, {resolved.epochs:.4g} epochs; {resolved.warmup_steps:,} of warm-up",
        "batch": f"{resolved.batch_size} images = {devices} x {resolved.micro_batch_size}{accumulated}",
        "learning rate": f"{resolved.peak_lr:.3g} at most = {config.base_lr:g} x {resolved.batch_size} "
        f"/ {REFERENCE_BATCH}",
        "machine": f"{forecast.device_name}, {resolved.precision}, ZeRO stage {resolved.stage} ({resolved.ds_config})",
        "memory": f"{decimal(forecast.step_bytes)} a {'device' if resolved.device == 'cuda' else 'process'}, "
        f"of {decimal(forecast.device_bytes)}",
        "  weights": decimal(memory.weights),
        "  gradients": f"{decimal(memory.gradients)}, and {decimal(memory.buckets)} to reduce them in",
        "  optimizer": decimal(memory.optimizer),
        "  activations": f"{decimal(forecast.activation_bytes)}, of {resolved.micro_batch_size} images",
    }
    if config.grad_checkpointing != "none":
        lines["  activations"] += f"; recomputed: {config.grad_checkpointing}"
    if memory.host:
        lines["  on the host"] = f"{decimal(memory.host)} of these"
    if memory.nvme:
        lines["  on a drive"] = f"{decimal(memory.nvme)} of these, in files of {decimal(memory.swap_files)}"
    kept, whole = forecast.checkpoints, decimal(forecast.checkpoint_bytes)
    lines["disk"] = f"{decimal((kept + 1) * forecast.checkpoint_bytes + forecast.metrics_bytes)} at most"
    lines["  checkpoints"] = f"{kept} x {whole}, and one while it is written; every {resolved.save_every:,} steps"
    lines["  metrics"] = decimal(forecast.metrics_bytes)
    if (step_s := forecast.step_s) is None:
        lines["time"] = "not measured"
        return lines
    left = f", {duration((resolved.steps - forecast.begun_at) * step_s)} left" if forecast.begun_at else ""
    lines["time"] = f"{duration(resolved.steps * step_s)}{left}, if the stream keeps up (coma bench loader DATA)"
    lines["  a step"] = f"{step_s:.3g} s, {resolved.batch_size / step_s:.4g} images/s"
    return lines


def _what_fits(forecast: "Forecast") -> dict[str, str]:
    """Return a line for each choice."""
    from rich.filesize import decimal

    lines = {"what fits": f"in the {decimal(forecast.free_bytes)} that are free"}
    for each in forecast.choices:
        fits = "fits" if each.fits(forecast.free_bytes) else "does not fit"
        host = f", {decimal(each.host_bytes)} on the host" if each.host_bytes else ""
        run = ", the run as it is" if each.is_the_run else ""
        lines[f"  {each.flag}"] = f"{decimal(each.device_bytes):>8}  {fits}{host}{run}"
    return lines
