"""Scoring of `coma probe` and `coma knn`, with a progress bar, and the lines of a result."""

from pathlib import Path
from typing import Any

from coma.cli import console
from coma.errors import shell_command
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.runs.names import export_command

_PROBES = {"probe": "linear probe", "probe_dinov2": "linear probe (DINOv2)", "probe_mae": "linear probe (MAE)"}


def score_and_print(options: KnnOptions, *, json: bool) -> None:
    """Score a run by a probe, or by nearest neighbours, and print the result."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from coma.evaluation.score_run import score_by

    bar = console.progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("features", total=None)
        result = score_by(options, lambda done, total: bar.update(task, completed=done, total=total))
    words = ["coma", "probe", "--protocol", options.protocol] if isinstance(options, ProbeOptions) else ["coma", "knn"]
    result["command"] = shell_command(
        *(*words, Path(result["checkpoint"]), result["data"]),
        *("--batch-size", options.batch_size, "--device", result["device"]),
        *(() if result["processes"] == 1 else ("--devices", result["processes"])),
    )
    console.print_result(result if json else _as_lines(result), json=json)


def _as_lines(result: dict[str, Any]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    for name, words in _PROBES.items():
        if name in result:
            lines[words] = _accuracy(result, name)
        if f"{name}_top5" in result:
            lines["top-5"] = f"{result[f'{name}_top5']:.1f}%"
    if "knn" in result:
        lines["20-NN"] = _accuracy(result, "knn")
    lines["RankMe"] = f"{result['rankme']:.1f} of {result['channels']} channels"
    lines["tested on"] = f"{result['test_images']:,} images ({result['tested_on']})"
    lines["learned from"] = f"{result['train_images']:,} images of {result['classes']:,} classes"
    lines["data"] = result["data"]
    lines["step"] = f"{result['step']:,}"
    if result["metrics"] is not None:
        lines["added to"] = result["metrics"]
    lines["command"] = result["command"]
    if result["metrics"] is not None:
        lines["next"] = export_command(Path(result["metrics"]).parent)
    return lines


def _accuracy(result: dict[str, Any], name: str) -> str:
    low, high = result[f"{name}_interval"]
    return f"{result[name]:.1f}% top-1 ({low:.1f}–{high:.1f})"
