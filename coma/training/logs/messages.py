"""What a run says at its start and at its end: pure text."""

from __future__ import annotations

from collections.abc import Sequence

from coma.training.config.options import RunConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.config.schedule import REFERENCE_BATCH


def opening(
    config: RunConfig,
    resolved: ResolvedRun,
    task: Sequence[tuple[str, str]],
    *,
    run: str,
    device_name: str,
    begun_at: int,
) -> list[str]:
    """Return what the configuration came to, a line a subject; `task` says what is trained."""
    accumulation = f" x {resolved.accumulation} accumulated" if resolved.accumulation > 1 else ""
    devices = f"{resolved.world_size} device{'s' if resolved.world_size > 1 else ''}"
    found = " (found here)" if config.data is None else ""
    lines = [
        ("data", f"{resolved.data}: {resolved.samples_per_epoch} images{found}"),
        *(line for line in task if line[0] != "start" or not begun_at),
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
            f"AdamW {resolved.deepspeed.betas}, weight decay {config.weight_decay:g}, gradients clipped at "
            f"{resolved.deepspeed.gradient_clipping:g}, seed {config.seed}",
        ),
        (
            "machine",
            f"{device_name}, {resolved.precision}, ZeRO stage {resolved.stage} ({resolved.ds_config})",
        ),
        (
            "run",
            f"{run}, "
            + (f"going on at step {begun_at + 1}" if begun_at else "new")
            + f"; a checkpoint every {resolved.save_every} steps",
        ),
    ]
    return [f"{name:<9} {text}" for name, text in lines]


def closing(result: dict[str, object]) -> list[str]:
    """Return where everything is, and what to type next."""
    run = result["run"]
    tested = "accuracy" in result
    then = f"coma export {run} DIR" if tested else f"coma probe {run}"
    lines = [
        ("accuracy", f"{result['accuracy']:.1f}% on val" if tested else None),
        ("picture", result["picture"]),
        ("report", result["report"]),
        ("weights", result["weights"]),
        ("metrics", f"{run}/metrics.jsonl, tensorboard --logdir {run}/tensorboard"),
        ("next", then if result["finished"] else "the same command goes on from here"),
    ]
    return [f"{name:<9} {text}" for name, text in lines if text]
