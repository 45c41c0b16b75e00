"""Console messages at the start and end of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch

from coma.runs.names import METRICS_NAME, TENSORBOARD_NAME
from coma.training.config.options import RunConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.config.schedule import REFERENCE_BATCH
from coma.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def log_start(
    config: RunConfig,
    resolved: ResolvedRun,
    description: Sequence[tuple[str, str]],
    *,
    folder: RunFolder,
    device_name: str,
    step: int,
) -> None:
    """Log the resolved run: one line per subject, those of `description` from the task; it resumes after `step`."""
    if folder.beside and not step:
        logger.info("%s", folder.beside)
    accumulation = f" x {resolved.accumulation} accumulated" if resolved.accumulation > 1 else ""
    devices = f"{resolved.world_size} device{'s' if resolved.world_size > 1 else ''}"
    adam = resolved.deepspeed["optimizer"]["params"]
    detected = " (found here)" if config.data is None else ""
    _log(
        [
            ("data", f"{resolved.data}: {resolved.samples_per_epoch} images{detected}"),
            *(line for line in description if line[0] != "start" or not step),
            (
                "length",
                f"{resolved.steps} steps of {resolved.batch_size} images = {devices} x "
                f"{resolved.micro_batch_size}{accumulation}; "
                f"{resolved.epochs:.4g} epochs",
            ),
            (
                "learning",
                f"rate {resolved.peak_lr:.3g} = {config.base_lr:g} x {resolved.batch_size} / {REFERENCE_BATCH}, "
                f"{resolved.warmup_steps} steps of warm-up, then cosine",
            ),
            (
                "",
                f"AdamW {tuple(adam['betas'])}, weight decay {config.weight_decay:g}, gradients clipped at "
                f"{resolved.deepspeed['gradient_clipping']:g}, seed {config.seed}",
            ),
            (
                "machine",
                f"{device_name}, {resolved.precision}, ZeRO stage {resolved.stage} ({resolved.ds_config})",
            ),
            (
                "run",
                f"{folder.path}, "
                + (f"resumed at step {step + 1}" if step else "new")
                + f"; a checkpoint every {resolved.save_every} steps",
            ),
        ]
    )
    gpus = torch.cuda.device_count()
    if resolved.device == "cuda" and resolved.world_size == 1 < gpus:
        _log([("", f"this machine has {gpus} GPUs: --devices {gpus} uses them all")])


def log_end(result: dict[str, object]) -> None:
    """Log where everything is, and which command comes next."""
    run = result["run"]
    has_accuracy = "accuracy" in result
    following = f"coma export {run} DIR" if has_accuracy else f"coma probe {run}"
    lines = [
        ("accuracy", f"{result['accuracy']:.1f}% on val" if has_accuracy else None),
        ("picture", result["picture"]),
        ("report", result["report"]),
        ("weights", result["weights"]),
        ("metrics", f"{run}/{METRICS_NAME}, tensorboard --logdir {run}/{TENSORBOARD_NAME}"),
        ("next", following if result["finished"] else "the same command resumes from here"),
    ]
    _log((name, text) for name, text in lines if text)


def _log(lines: Iterable[tuple[str, object]]) -> None:
    for name, text in lines:
        logger.info("%-9s %s", name, text)
