"""The result of a run, read from its folder: what `coma pretrain` and `coma finetune` return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coma.runs.lines import read_lines
from coma.runs.names import METRICS_NAME, REPORT_NAME, WEIGHTS_NAME, checkpoint_step, preview_path
from coma.runs.read import latest_checkpoint
from coma.training.config.resolve import ResolvedRun


def run_result(run: Path, resolved: ResolvedRun, *, elapsed_s: float, images_per_s: float | None) -> dict[str, Any]:
    """Return what `coma.training.pretrain` documents; paths that do not exist are None."""
    checkpoint = latest_checkpoint(run)
    step = checkpoint_step(checkpoint) if checkpoint else 0
    lines = read_lines(run / METRICS_NAME)
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    scores: dict[str, Any] = next((line for line in reversed(lines) if "accuracy" in line), {})
    picture, report = preview_path(run, resolved.steps), run / REPORT_NAME
    return {
        "run": str(run),
        "steps": step,
        "epochs": step * resolved.batch_size / resolved.samples_per_epoch,
        "loss": losses[-1] if losses else None,
        **{name: scores[name] for name in ("accuracy", "accuracy_top5") if name in scores},
        "images_per_s": images_per_s,
        "elapsed_s": elapsed_s,
        "finished": step >= resolved.steps,
        "metrics": str(run / METRICS_NAME),
        "checkpoint": str(checkpoint) if checkpoint else None,
        "weights": str(checkpoint / WEIGHTS_NAME) if checkpoint else None,
        "picture": str(picture) if picture.exists() else None,
        "report": str(report) if report.exists() else None,
    }
