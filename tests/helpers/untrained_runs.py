"""Run folders as training leaves them, without training, and their exports loaded by timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
import xxhash
from safetensors.torch import save_file

from coma.runs.read import build_model
from coma.training.config.options import PretrainConfig

SIZES = {"image_size": 64, "patch_size": 2}


def write_run(run: Path, steps: tuple[int, ...] = (7,), **fields: Any) -> Path:
    """What training leaves, without training: random weights, larger at each step."""
    config = PretrainConfig(**{"model": "dyvit_nano", **SIZES, **fields}).to_json()
    torch.manual_seed(len(steps))
    weights = build_model(config).state_dict()
    for step in steps:
        folder = run / "checkpoints" / f"step-{step:06}"
        folder.mkdir(parents=True)
        path = folder / "weights.safetensors"
        scaled = {name: value + step * 1e-3 if value.is_floating_point() else value for name, value in weights.items()}
        save_file(scaled, path)
        files = {path.name: {"bytes": path.stat().st_size, "xxh3_64": xxhash.xxh3_64_hexdigest(path.read_bytes())}}
        (folder / "checkpoint.json").write_text(json.dumps({"files": files}))
    (run / "checkpoints" / "latest").write_text(f"step-{steps[-1]:06}\n")
    resolved = {
        "data": "/somewhere/private/photos-shards/train",
        "samples_per_epoch": 100,
        "steps": 20,
        "batch_size": 10,
        "world_size": 2,
        "device_name": "NVIDIA H100",
        "fingerprint": "abcdef",
        "peak_lr": 1e-4,
        "precision": "bf16",
    }
    versions = {"coma": "0.1.0", "torch": torch.__version__, "command": "coma pretrain /somewhere/private"}
    (run / "config.json").write_text(json.dumps({"config": config, "resolved": resolved, "versions": versions}))
    lines = [{"step": step, "loss": 1 / step, "step_s": 36.0} for step in range(1, 21)]
    lines += [{"step": 7, "knn": 61.25, "rankme": 31.5}, {"step": 20, "knn": 99.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{half a li")
    return run


def load(folder: Path, **options: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()
