"""Checkpoints that are whole or absent, and checked before they are trusted.

    checkpoints/latest                      the name of the newest one
    checkpoints/step-000100/checkpoint.json step, data state, and every file's size and hash
                            deepspeed/      DeepSpeed's own files
                            rank-00000.pt   a process's random state
                            weights.safetensors   the whole autoencoder in float32

All is written under a temporary name, which rank 0 makes the final one when every rank is done.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from coma.errors import ComaError, UsageError
from coma.runs import CHECKPOINTS_NAME, LATEST_NAME, MANIFEST_NAME, WEIGHTS_NAME
from coma.shards.files import write_atomically
from coma.training.engine import group_settings, restore_group_settings
from coma.training.plan import processes
from coma.training.world import World

logger = logging.getLogger(__name__)

KEPT = 2
"""The newest, and one to fall back to."""
_DEEPSPEED_TAG = "deepspeed"
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class TrainingState:
    """What, beside the weights and the optimizer, makes the next step what it would have been."""

    step: int
    fingerprint: str
    seed: int
    samples: int
    world_size: int
    nonfinite_steps: int = 0


def save(engine: Any, world: World, run: Path, state: TrainingState, weights: dict[str, Tensor]) -> Path:
    """Write a checkpoint, with `full_weights` of the engine, and return its folder; collective."""
    from safetensors.torch import save_file

    folder = run / CHECKPOINTS_NAME / f"step-{state.step:06}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    if world.leads:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    # DeepSpeed merges client_state over its own keys: everything of ours stands under one.
    engine.save_checkpoint(
        str(temporary), tag=_DEEPSPEED_TAG, client_state={"coma": asdict(state)}, save_latest=False
    )
    torch.save(_random_state(), temporary / _rank_file(world.rank))
    if world.leads:
        save_file(weights, temporary / WEIGHTS_NAME, metadata={"format": "pt"})
    world.barrier()
    if world.leads:
        files = {
            str(path.relative_to(temporary)): _seal(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        write_atomically(temporary / MANIFEST_NAME, json.dumps({**asdict(state), "files": files}, indent=2))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        write_atomically(folder.parent / LATEST_NAME, folder.name + "\n")
        _prune(folder.parent)
    world.barrier()
    return folder


def load(engine: Any, world: World, folder: Path) -> TrainingState:
    """Bring engine and random state to where the checkpoint left them; collective."""
    settings = group_settings(engine)
    path, client_state = engine.load_checkpoint(str(folder), tag=_DEEPSPEED_TAG)
    if path is None:
        raise ComaError(f"DeepSpeed could not load {folder}")
    restore_group_settings(engine, settings)
    _restore_random_state(torch.load(folder / _rank_file(world.rank), weights_only=True))
    return TrainingState(**client_state["coma"])


def check_world_size(folder: Path, world_size: int) -> None:
    """Refuse a checkpoint of another number of processes, which DeepSpeed would refuse or load wrongly.

    Raises:
        UsageError: it is of another number.
    """
    saved = json.loads((folder / MANIFEST_NAME).read_text())["world_size"]
    if saved != world_size:
        raise UsageError(
            f"{folder} was saved by {processes(saved)} and this run has {world_size}: "
            f"go on with --devices {saved}, or start anew with another --out"
        )


def newest_whole(run: Path, world: World) -> Path | None:
    """Return the newest checkpoint that is not damaged, None if the run has none; collective.

    Every file's size is checked, and its hash, the files shared out over the ranks.

    Raises:
        ComaError: there are checkpoints, and all are damaged.
    """
    candidates = world.agree(lambda: [str(folder) for folder in checkpoints(run)])
    for name in candidates:
        folder = Path(name)
        complaints = [complaint for complaint in world.gather(_check(folder, world)) if complaint]
        if not complaints:
            return folder
        if world.leads:
            logger.warning("checkpoint %s is damaged (%s): trying the one before", folder, complaints[0])
    if candidates:
        raise ComaError(
            f"every checkpoint in {run / CHECKPOINTS_NAME} is damaged: start anew with another --out"
        )
    return None


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoint folders, newest first."""
    folders = [
        path for path in (run / CHECKPOINTS_NAME).glob("step-*") if re.fullmatch(r"step-\d+", path.name)
    ]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _check(folder: Path, world: World) -> str | None:
    """Return what is wrong with a checkpoint as far as this rank looks, None if nothing is."""
    try:
        files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST_NAME} is missing or unreadable"
    for place, (name, sealed) in enumerate(files.items()):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != sealed["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {sealed['bytes']}"
        if place % world.size == world.rank and _hash(path) != sealed["xxh3_64"]:
            return f"the bytes of {name} have changed"
    return None


def _seal(path: Path) -> dict[str, Any]:
    """Sync a file to disk and return what it must still be when it is read again."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "xxh3_64": _hash(path)}


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _prune(folder: Path) -> None:
    """Delete all but the newest checkpoints, and what a killed save left; nothing that has another name."""
    for path in [*checkpoints(folder.parent)[KEPT:], *folder.glob(".step-*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05}.pt"


def _random_state() -> dict[str, torch.Tensor]:
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
