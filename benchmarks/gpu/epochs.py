"""Epochs from the stream, DyViT by CoMA beside MAE's ViT in turn, and the hours that ImageNet-1k would take."""

import statistics
from typing import Any

from benchmarks.gpu.part import Measuring
from benchmarks.gpu.record import read_record
from coma.bench.epoch import bench_epoch
from coma.bench.network import IMAGENET_IMAGES
from coma.bench.options import EpochOptions
from coma.shards.files import folder_at
from coma.shards.manifest import read_manifest

_MODELS = ("dyvit_base:coma", "dyvit_small:coma", "vit_base_patch16_224:mae")
_QUICK_MODELS = ("dyvit_nano:coma", "vit_tiny_patch16_224:mae")
_CLAIM = "the paper's claim: an epoch takes 10% less than MAE's, a ratio of 0.90"
_EPOCHS = (96, 100)


def measure_epoch(measuring: Measuring) -> None:
    """Take rounds of `coma bench epoch`, each a row per network; ratios are medians of the rounds' ratios."""
    models = _QUICK_MODELS if measuring.quick else _MODELS
    small: dict[str, Any] = {"batch_size": 2, "image_size": 64, "steps": 1} if measuring.quick else {}
    options = EpochOptions(models=models, rounds=1, **({"batch_size": 256, "steps": 15} | small))
    manifest = read_manifest(folder_at(str(measuring.data)))
    measuring.rows.clear()
    taken: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    for _ in measuring.rounds(1 if measuring.quick else 5):
        for timing in bench_epoch(manifest, options).timings:
            rounds = taken[timing.model]
            rounds.append(timing.to_json())
            median = {
                name: statistics.median(each[name] for each in rounds)
                for name in ("epoch_ratio", "images_per_s", "memory_images_per_s", "fed_ratio", "wait_share")
            }
            ratios = [each["epoch_ratio"] for each in rounds]
            measuring.put(
                {"network": timing.model},
                precision=timing.precision,
                batch=timing.batch_size,
                rounds=len(rounds),
                **median,
                least_ratio=min(ratios),
                most_ratio=max(ratios),
            )
    measuring.note(f"epoch ratio: to {models[-1]}; {_CLAIM}")
    measuring.note(
        "fed ratio: images/s as a part of those with a batch in memory; wait share: of a step, for the stream"
    )
    rates = {f"{row['network']}, stream": float(row["images_per_s"] or 0) for row in measuring.rows}
    held = {f"{row['network']}, memory": float(row["memory_images_per_s"] or 0) for row in measuring.rows}
    measuring.bars("Images trained on a second, from the stream and from memory", rates | held)


def measure_hours(measuring: Measuring) -> None:
    """Project from the records of stream, step and epoch."""
    records = {name: read_record(measuring.out, name) for name in ("stream", "step", "epoch")}
    measuring.rows.clear()
    for row in _rows(records["epoch"]):
        _project(measuring, f"{row['network']}, {row['batch']}, from the stream as it is", row["images_per_s"])
    stream = next((row["images_per_s"] for row in _rows(records["stream"])), None)  # coma's is the first
    for row in _rows(records["step"]):
        compiled = ", compiled" if row.get("compiled") else ""
        rate = row["images_per_s"] if stream is None else min(stream, row["images_per_s"])
        limit = "the step" if rate == row["images_per_s"] else "the stream"
        _project(measuring, f"{row['network']}, {row['batch']}{compiled}, the slower of step and stream", rate, limit)
    missing = [name for name, record in records.items() if not _rows(record)]
    if not measuring.rows:
        measuring.skip(f"nothing to project from: run {' '.join(missing)} first")
    elif missing:
        measuring.note(f"without {', '.join(missing)}, which has not been measured")
    measuring.note(f"{IMAGENET_IMAGES:,} images an epoch, one device, without evaluation and checkpoints")


def _rows(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return those rows of a record that have a rate."""
    return [row for row in (record or {}).get("rows", []) if row.get("images_per_s")]


def _project(measuring: Measuring, what: str, images_per_s: float, limited_by: str | None = None) -> None:
    hours = {f"hours_{epochs}_epochs": epochs * IMAGENET_IMAGES / images_per_s / 3600 for epochs in _EPOCHS}
    measuring.add(what=what, images_per_s=images_per_s, limited_by=limited_by, **hours)
