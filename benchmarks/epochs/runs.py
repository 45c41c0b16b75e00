"""A run of the comparison: pre-training of a variant, and scores of its frozen features on the way and at the end.

A finished run is one line of OUT/runs.jsonl with all of its settings. A command that is started again skips the runs
that stand there, so it may be killed at any time, and a changed row is run anew.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.epochs.images import Data, evaluation_batches, steps_of, training_batches
from benchmarks.epochs.levers import Levers
from benchmarks.epochs.variants import Variant
from coma.errors import DivergedError
from coma.evaluation.features import pool
from coma.evaluation.knn import knn_accuracy
from coma.evaluation.probe import probe_accuracy
from coma.training.config.schedule import learning_rate

RUNS_NAME = "runs.jsonl"
MAX_NORM = 1.0
BETAS = (0.9, 0.95)  # as `coma pretrain` has them, and the weight decay on matrices alone


@dataclass(frozen=True)
class Settings:
    """Settings that determine a run's result."""

    variant: Variant
    seed: int
    epochs: float
    scored_after: tuple[float, ...]
    """Numbers of epochs after which the features are scored, rising, the last of them `epochs`."""
    images: int
    image_size: int
    data: str
    """Fingerprint of the manifest."""
    tested_on: str
    """Images that the features are scored on."""

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, tuples as lists."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def __str__(self) -> str:
        """Name the run."""
        return f"{self.variant.name}, {self.epochs:g} epochs, seed {self.seed}"


def train(settings: Settings, data: Data, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and score; return the line of the run.

    Raises:
        DivergedError: the loss is not finite.
    """
    variant, size = settings.variant, settings.image_size
    torch.manual_seed(settings.seed)
    trainer = Trainer(variant, settings.seed, size)
    model = trainer.model
    averaged = AveragedModel(model, multi_avg_fn=partial(_average, horizon=_horizon(variant)))
    steps = steps_of(settings.epochs, len(data.train), variant.batch_size)
    stops = {steps_of(epoch, len(data.train), variant.batch_size): epoch for epoch in settings.scored_after}
    curve: list[dict[str, Any]] = []
    spent = _Clock()
    macs = macs_per_image(variant, size) * variant.batch_size
    for step, batch in enumerate(_batches(settings, data, steps), 1):
        loss = trainer.step(batch, _rate(variant, step, steps))
        averaged.update_parameters(model)
        if step in stops:
            spent.stop()
            if not torch.isfinite(loss):
                raise DivergedError(f"{settings}: the loss is {loss.item()} at step {step}; lower the learning rate")
            at, scored = stops[step], scores(averaged.module.eval(), data, size, bfloat16=variant.bfloat16)
            curve.append({"epochs": at, "loss": loss.item(), "cpu_s": spent.cpu_s, "macs": macs * step, **scored})
            say(f"{settings}: after {at:g} probe {scored['probe']:.1f}, kNN {scored['knn']:.1f}")
            spent.start()
    return {
        "settings": settings.to_json(),
        "curve": curve,
        "wall_s": spent.wall_s,
        "images_seen": steps * variant.batch_size,
        "parameters": sum(parameter.numel() for parameter in model.backbone.parameters()),
        "decoder_parameters": sum(parameter.numel() for parameter in model.decoder.parameters()),
        "torch": torch.__version__,
    }


class Trainer:
    """A network with its optimizer, and a step of training."""

    def __init__(self, variant: Variant, seed: int, image_size: int) -> None:
        self.variant, self.seed = variant, seed
        self.model = variant.build(image_size).train()
        self.optimizer = torch.optim.AdamW(_groups(self.model, variant.weight_decay), betas=BETAS, fused=True)

    def step(self, batch: tuple[Tensor, Tensor, Tensor], lr: float) -> Tensor:
        """Train on a batch of `training_batches`; return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Two matrix products: the CPU's fused attention is many times slower in bfloat16.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.variant.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = self.variant.loss(self.model, *batch, seed=self.seed)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        return loss.detach()


def seconds_of(settings: Settings, data: Data) -> float:
    """Estimate a run's CPU seconds from a few steps, without its scores."""
    trainer = Trainer(settings.variant, settings.seed, settings.image_size)
    times = []
    for batch in _batches(settings, data, 4):
        begun = time.process_time()
        trainer.step(batch, 0.0)
        times.append(time.process_time() - begun)
    return min(times) * steps_of(settings.epochs, len(data.train), settings.variant.batch_size)


def _batches(settings: Settings, data: Data, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return training_batches(
        data.train,
        steps=steps,
        batch_size=settings.variant.batch_size,
        image_size=settings.image_size,
        seed=settings.seed,
        crop_scale=settings.variant.crop_scale,
    )


@torch.no_grad()
def scores(model: nn.Module, data: Data, image_size: int, *, bfloat16: bool) -> dict[str, float]:
    """Return the accuracy of linear probe and nearest neighbours on frozen features, in percent.

    The features are what `coma probe` takes, but that matrix products may be in bfloat16, as in training: scoring would
    take as long as training without.
    """
    backbone: nn.Module = model.backbone  # type: ignore[assignment]
    rows: list[Tensor] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
        for images in (data.train, data.test):
            batches = evaluation_batches(images, image_size)
            rows.append(torch.cat([pool(backbone, batch.images).float() for batch in batches]))
            rows.append(images.labels)
    return {"probe": round(probe_accuracy(*rows), 2), "knn": round(knn_accuracy(*rows), 2)}


def macs_per_image(variant: Variant, image_size: int) -> int:
    """Count the multiply-adds of an image in training: the forward pass of all views or masks (backward: twice)."""
    model, samples = variant.build(image_size), torch.zeros(1, dtype=torch.int64)
    images = torch.zeros(1, 3, image_size, image_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        variant.loss(model, images, samples, samples, seed=0)
    return int(counter.get_total_flops()) // 2


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines of finished runs; half a line that a kill has left is none."""
    file = out / RUNS_NAME
    lines = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]] if file.is_file() else []
    for line in lines:
        row = line["settings"]["variant"]
        row["levers"] = asdict(Levers()) | row["levers"]  # a lever that came later was at its default
    return lines


def line_of(lines: Sequence[dict[str, Any]], run: Settings) -> dict[str, Any] | None:
    """Return the finished run that answers for this one, with this one's scores alone; None if there is none.

    It has the same settings; at a constant rate, which knows no end, it may be longer and scored more often.
    """
    wanted, loose = run.to_json(), ("epochs", "scored_after")
    for line in lines:
        settings = line["settings"]
        same = all(settings[name] == value for name, value in wanted.items() if name not in loose)
        exact = all(settings[name] == wanted[name] for name in loose)
        covers = run.variant.schedule == "constant" and set(run.scored_after) <= set(settings["scored_after"])
        if same and (exact or covers):
            return line | {"curve": [point for point in line["curve"] if point["epochs"] in run.scored_after]}
    return None


def append_line(out: Path, line: dict[str, Any]) -> None:
    """Add a finished run in one write, in place of half a line that a kill has left."""
    with (out / RUNS_NAME).open("ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class _Clock:
    """CPU and wall seconds of training alone: stopped while features are scored."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0
        self.start()

    def start(self) -> None:
        self._begun = (time.process_time(), time.perf_counter())

    def stop(self) -> None:
        self.cpu_s += time.process_time() - self._begun[0]
        self.wall_s += time.perf_counter() - self._begun[1]


def _rate(variant: Variant, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 1."""
    if variant.schedule == "constant":
        return variant.lr * min(1.0, step / variant.warmup_steps)
    return learning_rate(step, peak=variant.lr, warmup_steps=min(variant.warmup_steps, steps // 4), steps=steps)


def _horizon(variant: Variant) -> float:
    """Steps that the average of the weights reaches back; a cosine ends in a rate of zero, so needs none."""
    return variant.averaged_images / variant.batch_size if variant.schedule == "constant" else 0.0


def _average(averaged: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor, *, horizon: float) -> None:
    """Move the average towards the weights: by 1 / horizon, and early, with few to average, by more."""
    part = 1.0 if horizon <= 1 else max(1 / horizon, 10 / (11 + int(count)))
    torch._foreach_lerp_(list(averaged), list(weights), part)  # as torch.optim.swa_utils does


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors, positions and tokens do not (`coma.training.engine.engine` has it beside DeepSpeed)."""
    kept = model.no_weight_decay()  # type: ignore[operator]
    named = list(model.named_parameters())
    decays = [p for name, p in named if p.ndim >= 2 and name not in kept]
    rest = [p for name, p in named if p.ndim < 2 or name in kept]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
