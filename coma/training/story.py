"""What a run says at its start and at its end: pure text."""

from __future__ import annotations

from collections.abc import Sequence

from coma.training.config import PretrainConfig
from coma.training.plan import Plan
from coma.training.schedule import REFERENCE_BATCH


def opening(
    config: PretrainConfig,
    plan: Plan,
    *,
    run: str,
    found: bool,
    parameters: int,
    view_sizes: Sequence[int],
    units: int,
    unit_size: int,
    device_name: str,
    begun_at: int,
) -> list[str]:
    """Return what the configuration came to, a line a subject."""
    views = "1 view" if len(view_sizes) == 1 else f"{len(view_sizes)} views"
    start = config.start_size or config.image_size
    size = f"{start} to {config.image_size}" if start < config.image_size else config.image_size
    accumulation = f" x {plan.accumulation} accumulated" if plan.accumulation > 1 else ""
    devices = f"{plan.world_size} device{'s' if plan.world_size > 1 else ''}"
    adam = plan.deepspeed["optimizer"]["params"]
    lines = [
        ("data", f"{plan.data}: {plan.samples_per_epoch} images{' (found here)' if found else ''}"),
        (
            "model",
            f"{config.model}, {config.method}: {views} of {' + '.join(map(str, view_sizes))} of {units} units of "
            f"{unit_size} px, images of {size} px; {parameters / 1e6:.1f} M parameters",
        ),
        *([("start", f"from the weights in {config.init}")] if config.init and not begun_at else []),
        (
            "length",
            f"{plan.steps} steps of {plan.batch_size} images = {devices} x "
            f"{plan.micro_batch_size}{accumulation}; "
            f"{plan.epochs:.4g} epochs",
        ),
        (
            "learning",
            f"rate {plan.peak_lr:.3g} = {config.base_lr:g} x {plan.batch_size} / {REFERENCE_BATCH}, "
            f"{plan.warmup_steps} steps of warm-up, then cosine",
        ),
        (
            "",
            f"AdamW {tuple(adam['betas'])}, weight decay {config.weight_decay:g}, gradients clipped at "
            f"{plan.deepspeed['gradient_clipping']:g}, seed {config.seed}",
        ),
        ("machine", f"{device_name}, {plan.precision}, ZeRO stage {plan.stage} ({plan.ds_config})"),
        (
            "run",
            f"{run}, "
            + (f"going on at step {begun_at + 1}" if begun_at else "new")
            + f"; a checkpoint every {plan.save_every} steps",
        ),
    ]
    return [f"{name:<9} {text}" for name, text in lines]


def closing(result: dict[str, object]) -> list[str]:
    """Return where everything is, and what to type next."""
    run = result["run"]
    lines = [
        ("picture", result["picture"]),
        ("report", result["report"]),
        ("weights", result["weights"]),
        ("metrics", f"{run}/metrics.jsonl, tensorboard --logdir {run}/tensorboard"),
        ("next", f"coma probe {run}" if result["finished"] else "the same command goes on from here"),
    ]
    return [f"{name:<9} {text}" for name, text in lines if text]
