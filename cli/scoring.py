"""Scoring of `coma probe` and `coma knn`, with a progress bar, and the lines of a result."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.cli import console
from coma.errors import shell_command
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.runs.names import export_command

if TYPE_CHECKING:
    from rich.table import Table

_PROBES = {"probe": "linear probe", "probe_dinov2": "linear probe (DINOv2)", "probe_mae": "linear probe (MAE)"}
_SEGMENTERS = {"": "logistic regression", "_dinov2": "linear layer (DINOv2)", "_knn": "neighbours"}
"""Heads by the end of their scores' names."""


def score_and_print(options: KnnOptions, *, json: bool) -> None:
    """Score a run by a probe, or by nearest neighbours, and print the result."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from coma.evaluation.score_run import score_by

    bar = console.progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("features", total=None)
        result = score_by(options, lambda done, total: bar.update(task, completed=done, total=total))
    result["command"] = shell_command("coma", *_words(options, result))
    if json:
        console.print_result(result, json=True)
        return
    if options.task == "segmentation":
        console.stdout.print(_class_table(result))
    console.print_result(_as_lines(result), json=False)


def _words(options: KnnOptions, result: dict[str, Any]) -> list[object]:
    """Words of the command that gives this result again."""
    words: list[object] = ["knn"]
    if isinstance(options, ProbeOptions):
        words = ["probe", "--protocol", options.protocol]
    if options.task == "segmentation":
        words += ["--task", "segmentation"]
        for name in ("window_size", "shorter_side", "stride", "patches"):
            value = getattr(options, name) if name == "patches" else result[name]
            words += [] if value is None else [f"--{name.replace('_', '-')}", value]
    words += [Path(result["checkpoint"]), result["data"]]
    words += ["--batch-size", options.batch_size, "--device", result["device"]]
    return words if result["processes"] == 1 else [*words, "--devices", result["processes"]]


def _as_lines(result: dict[str, Any]) -> dict[str, Any]:
    lines = _segmentation_lines(result) if "class_iou" in result else _classification_lines(result)
    lines["data"] = result["data"]
    lines["step"] = f"{result['step']:,}"
    if result["metrics"] is not None:
        lines["added to"] = result["metrics"]
    lines["command"] = result["command"]
    if result["metrics"] is not None:
        lines["next"] = export_command(Path(result["metrics"]).parent)
    return lines


def _classification_lines(result: dict[str, Any]) -> dict[str, Any]:
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
    return lines


def _segmentation_lines(result: dict[str, Any]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    for end, words in _SEGMENTERS.items():
        if (miou := result.get(f"miou{end}")) is not None:
            low, high = result[f"miou{end}_interval"]
            lines[words] = f"{miou:.1f}% mIoU ({low:.1f}–{high:.1f}), {result[f'pixel_accuracy{end}']:.1f}% of pixels"
    patches = "their pixels" if result["patches"] is None else f"{result['patches']:,} patches"
    size = result["window_size"]
    shown = "one an image" if result["shorter_side"] is None else f"sliding, shorter side {result['shorter_side']} px"
    lines["maps"] = f"{result['channels']} channels at stride {result['stride']}"
    lines["windows"] = f"{size} x {size} px, {shown}"
    lines["tested on"] = f"{result['test_images']:,} images ({result['tested_on']})"
    lines["learned from"] = f"{patches} of {result['train_images']:,} images, {result['classes']:,} classes"
    return lines


def _class_table(result: dict[str, Any]) -> "Table":
    """A line a class, the most frequent first, within 80 columns."""
    from rich.table import Table
    from rich.text import Text

    from coma.shards.text import visible

    heads = [end for end in _SEGMENTERS if f"miou{end}" in result]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", max_width=30, no_wrap=True)
    table.add_column("pixels", justify="right", no_wrap=True)
    for end in heads:
        table.add_column(f"IoU, {_SEGMENTERS[end]}" if len(heads) == 1 else _SEGMENTERS[end], justify="right")
    for row in sorted(result["class_iou"], key=lambda row: -row["share"]):
        figures = (row[f"iou{end}"] for end in heads)
        cells = (row["class"], f"{row['share']:.1f}%", *("-" if iou is None else f"{iou:.1f}%" for iou in figures))
        table.add_row(*map(Text, map(visible, cells)))
    return table


def _accuracy(result: dict[str, Any], name: str) -> str:
    low, high = result[f"{name}_interval"]
    return f"{result[name]:.1f}% top-1 ({low:.1f}–{high:.1f})"
