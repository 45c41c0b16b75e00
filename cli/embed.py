"""`coma embed`: features of images as a table."""

from typing import Any

from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.embedding.options import EmbedOptions


@from_options(EmbedOptions)
def embed(options: EmbedOptions, json: Json = False) -> None:
    """Write the features of images as a table.

    Each image becomes a vector, in a row with its path and label; --patches
    adds a map. Damaged images are listed beside OUT with their reasons. The
    same command goes on where it was stopped or killed. --neighbours K finds
    what lies near what, and draws it.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from coma.embedding.command import run_command
    from coma.training.processes.torch_state import own_torch_state

    bar = console.progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar, own_torch_state():
        task, shown = bar.add_task("listing", total=None), "listing"

        def show(stage: str, done: int, total: int | None) -> None:
            nonlocal shown
            if stage != shown:
                shown = stage
                bar.reset(task, description=stage)
            bar.update(task, completed=done, total=total)

        result = run_command(options, show)
    console.print_result(result if json else _as_lines(result), json=json)


def _as_lines(result: dict[str, Any]) -> dict[str, Any]:
    lines: dict[str, Any] = {"out": result["out"]}
    if result["table"] != result["out"]:
        lines["table"] = result["table"]
    splits = ", ".join(f"{name} {count:,}" for name, count in result["splits"].items())
    lines["images"] = f"{result['images']:,} ({splits})"
    if result["set_aside"]:
        lines["set aside"] = f"{result['set_aside']:,} ({result['quarantine']})"
    lines["vector"] = f"{result['channels']:,} values, {result['dtype']}"
    if result["map_shape"] is not None:
        lines["patches"] = "{} x {} vectors of {:,} values".format(*result["map_shape"])
    step = "" if result["step"] is None else f", step {result['step']:,}"
    lines["model"] = f"{result['model']} ({result['weights']}{step}), {result['image_size']} pixels"
    if result["images_per_s"] is not None:
        lines["speed"] = f"{result['images_per_s']:,.1f} images/s on {_devices(result)}"
    if "neighbours" in result:
        lines["neighbours"] = result["neighbours"]
        lines["near-duplicates"] = _pairs(result)
        lines["outliers"] = ", ".join(f"{path} ({near:.2f})" for path, near in result["outliers"][:3])
        lines["picture"] = result["picture"]
    return lines


def _devices(result: dict[str, Any]) -> str:
    return result["device"] if result["processes"] == 1 else f"{result['processes']} x {result['device']}"


def _pairs(result: dict[str, Any]) -> str:
    if not result["pairs"]:
        return "none"
    pairs = "1 pair" if result["pairs"] == 1 else f"{result['pairs']:,} pairs"
    return f"{pairs} ({result['duplicates']})"
