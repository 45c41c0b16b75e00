"""Console messages at the start and end of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from coma.errors import shell_command
from coma.evaluation.score import can_be_probed
from coma.runs.names import METRICS_NAME, TENSORBOARD_NAME, export_command
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.config.schedule import REFERENCE_BATCH, Segment, rate_at
from coma.training.logs.metrics import wrapped
from coma.training.run_folder import RunFolder
from coma.training.setup import Prepared

logger = logging.getLogger(__name__)


def log_start(prepared: Prepared, folder: RunFolder, step: int) -> None:
    """Log what the run was resolved to, one line per subject; `step` is the one that it resumes after, or 0."""
    config, resolved, device = prepared.config, prepared.resolved, prepared.facts["device_name"]
    if folder.beside and not step:
        logger.info("%s", folder.beside)
    accumulation = f" x {resolved.accumulation} accumulated" if resolved.accumulation > 1 else ""
    devices = f"{resolved.world_size} device{'s' if resolved.world_size > 1 else ''}"
    detected = " (found here)" if config.data is None else ""
    if resolved.sources:
        _log("data", f"{len(resolved.sources)} data sets of {resolved.samples_per_epoch} images together, an epoch")
        for line in _sources(prepared):
            _log("", line)
    else:
        _log("data", f"{resolved.data}: {resolved.samples_per_epoch} images{detected}")
    if resolved.pixels is not None:
        logger.info("%s", wrapped("pixels", prepared.task.preprocessing.describe()))
    before = ""
    for subject, text in prepared.task.describe():
        before = subject or before
        if before != "start" or not step:
            _log(subject, text)
    _log(
        "length",
        f"{resolved.steps} steps of {resolved.batch_size} images = {devices} x "
        f"{resolved.micro_batch_size}{accumulation}; {resolved.epochs:.4g} epochs",
    )
    _log(
        "learning",
        f"rate {resolved.peak_lr:.3g} = {config.base_lr:g} x {resolved.batch_size} / {REFERENCE_BATCH}, "
        f"{_course(resolved.segments[0])}",
    )
    for segment in resolved.segments[1:]:
        rate = rate_at(segment.after, resolved.peak_lr, resolved.segments)
        _log(
            "", f"extended at step {segment.after} to {segment.end} steps: the rate, {rate:.3g}, {_extension(segment)}"
        )
    _log(
        "",
        f"AdamW {resolved.deepspeed.betas}, weight decay {config.weight_decay:g}, gradients clipped at "
        f"{resolved.deepspeed.gradient_clipping:g}, seed {config.seed}",
    )
    _log("machine", f"{device}, {resolved.precision}, ZeRO stage {resolved.stage} ({resolved.ds_config})")
    if config.grad_checkpointing != "none":
        stages = "all" if config.grad_checkpointing == "all" else f"of stages {config.grad_checkpointing}"
        _log("memory", f"activations are recomputed in the backward pass: {stages}")
    if auto := resolved.deepspeed.auto_values():
        _log("", f'"auto" in {resolved.ds_config}: {", ".join(f"{key} = {value}" for key, value in auto.items())}')
    stands = f"resumed at step {step + 1}" if step else "new"
    _log("run", f"{folder.path}, {stands}; a checkpoint every {resolved.save_every} steps")
    gpus = torch.cuda.device_count()
    if resolved.device == "cuda" and resolved.world_size == 1 < gpus:
        idle = f"{gpus - 1} of the {gpus} GPUs that are visible here are"
        logger.warning("%s idle: --devices auto uses all of them", idle if gpus > 2 else "1 of 2 GPUs is")


def _sources(prepared: Prepared) -> list[str]:
    """Return a line for each data set of a mixture: its share, and how often the run shows each of its images."""
    resolved, lines = prepared.resolved, []
    for source in resolved.sources:
        name, share, images = source["name"], source["share"], source["images"]
        epochs = resolved.steps * resolved.batch_size * share / images
        lines.append(f"{name}: {images} images, {100 * share:.4g}% of the run, {epochs:.4g} epochs")
    return lines


def _course(segment: Segment) -> str:
    """Return what the learning rate does in a segment."""
    warmup = f"{segment.warmup_steps} steps of warm-up, then"
    if segment.cooldown_steps is None:
        return f"{warmup} cosine"
    return f"{warmup} constant, {segment.cooldown_steps} steps of cooldown"


def _extension(segment: Segment) -> str:
    """Return what becomes of the learning rate of a run that is extended."""
    if segment.seamless:
        return f"goes on as it was, {segment.cooldown_steps} steps of cooldown"
    return f"begins anew: {_course(segment)}"


def log_end(result: dict[str, object], prepared: Prepared) -> None:
    """Log where everything is, and which command comes next: one that works on the run's data."""
    run = Path(str(result["run"]))
    if isinstance(prepared.config, FinetuneConfig):
        following = export_command(run)
    else:
        own = [] if len(prepared.manifest.parts) == 1 else [prepared.manifest.parts[0].place.rpartition("/")[0]]
        probed = can_be_probed(prepared.manifest.parts[0].folder)
        following = shell_command("coma", "probe" if probed else "reconstruct", run, *own)
    if "accuracy" in result:
        _log("accuracy", f"{result['accuracy']:.1f}% on val")
    for subject in ("picture", "report", "weights"):
        if result[subject]:
            _log(subject, result[subject])
    _log("metrics", f"{run}/{METRICS_NAME}, {shell_command('tensorboard', '--logdir', run / TENSORBOARD_NAME)}")
    _log("next", following if result["finished"] else "the same command resumes from here")


def _log(subject: str, text: object) -> None:
    logger.info("%-9s %s", subject, text)
