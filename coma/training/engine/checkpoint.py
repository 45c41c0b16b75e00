"""Checkpoints: saved whole or not at all, verified before a run resumes from them.

    checkpoints/latest                      the name of the newest one
    checkpoints/step-000100/checkpoint.json format, step, data state, and every file's size and hash
                            weights.safetensors             the whole network in float32
                            average.safetensors             the exponential moving average (EMA) of the weights, if kept
                            optimizer-00000.safetensors     a process's share of the optimizer's state

All is written under a temporary name, which rank 0 makes the final one when every rank is done. Any number of
processes at any ZeRO stage can resume from a checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from coma.errors import ComaError, UsageError
from coma.runs.names import (
    AVERAGE_NAME,
    CHECKPOINTS_NAME,
    LATEST_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    checkpoint_path,
    checkpoint_step,
    checkpoints,
    is_optimizer_name,
    optimizer_name,
)
from coma.runs.read import FORMAT, other_format
from coma.shards.files import hash_file, write_atomically
from coma.training.config.resolve import processes
from coma.training.engine.engine import loss_scale, restore_loss_scale, set_weights
from coma.training.engine.optimizer_state import optimizer_state, restore_optimizer
from coma.training.processes.world import World

logger = logging.getLogger(__name__)

_HASH = "xxh3_64"


@dataclass(frozen=True)
class TrainingState:
    """What a resumed run needs beside weights and optimizer state, for its next step to be what it would have been."""

    step: int
    fingerprint: str
    seed: int
    samples: int
    world_size: int
    nonfinite_steps: int = 0


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept when a new one is saved."""

    last: int = 2
    """Number of the newest that are kept: by default one, and one to fall back to."""
    is_milestone: Callable[[int], bool] = lambda step: False
    """Whether the checkpoint of a step is never deleted."""


def save(
    engine: Any,
    world: World,
    run: Path,
    state: TrainingState,
    weights: dict[str, Tensor],
    retention: Retention = Retention(),
    averaged: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint, with `full_weights` and their EMA, if one is kept, and delete older ones; collective.

    Returns:
        The checkpoint's folder.

    Raises:
        ComaError: it could not be written, on a full disk for example; the checkpoints before it stay.
    """
    from safetensors.torch import save_file

    folder = checkpoint_path(run, state.step)
    temporary = folder.with_name(f".{folder.name}.tmp")

    def begin() -> None:
        for partial in folder.parent.glob(".step-*.tmp"):  # of a save that was killed
            shutil.rmtree(partial, ignore_errors=True)
        with _as_coma_error(state.step, folder):
            temporary.mkdir(parents=True)

    def write() -> dict[str, Any]:
        own = {optimizer_name(world.rank): optimizer_state(engine)}
        if world.is_rank0:
            own[WEIGHTS_NAME] = weights
            if averaged is not None:
                own[AVERAGE_NAME] = averaged
        with _as_coma_error(state.step, folder):
            mode = temporary.stat().st_mode & 0o666  # safetensors lets nobody but the owner read a file
            for name, tensors in own.items():
                save_file(tensors, temporary / name, metadata={"format": "pt"})
                (temporary / name).chmod(mode)
            return {name: _seal(temporary / name) for name in own}

    def finish() -> None:
        content = {"format": FORMAT, **asdict(state), "loss_scale": loss_scale(engine), "files": files}
        with _as_coma_error(state.step, folder):
            write_atomically(temporary / MANIFEST_NAME, json.dumps(sealed(content), indent=2))
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
            write_atomically(folder.parent / LATEST_NAME, folder.name + "\n")
        _prune(folder, retention)

    try:
        world.run_on_rank0(begin)
        written = world.gather(world.run_on_all(write))
        files = {name: seal for part in written for name, seal in part.items()}
        world.run_on_rank0(finish)
    except BaseException:
        if world.is_rank0:  # frees the space
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def load(engine: Any, world: World, folder: Path) -> TrainingState:
    """Restore the engine from a checkpoint, whatever number of processes wrote it; collective.

    Raises:
        ComaError: the checkpoint lacks a part of the optimizer state.
    """
    from safetensors.torch import load_file

    content = _read_manifest(folder)
    weights = load_file(folder / WEIGHTS_NAME)
    set_weights(engine, weights)
    states = [folder / name for name in content["files"] if is_optimizer_name(name)]
    restore_optimizer(engine, weights, states)
    restore_loss_scale(engine, content["loss_scale"])
    engine.global_steps = content["step"]
    if world.is_rank0 and content["world_size"] != world.size:
        logger.info(
            "%s was saved by %s: samples are the same, losses differ by rounding",
            folder.name,
            processes(content["world_size"]),
        )
    state = TrainingState(**{field.name: content[field.name] for field in fields(TrainingState)})
    return replace(state, world_size=world.size)


def newest_whole(run: Path, world: World) -> Path | None:
    """Return the newest checkpoint that is not damaged, None if the run has none; collective.

    Every rank checks the size of every file, and the hash of its share of the files.

    Raises:
        UsageError: the checkpoint is of another format.
        ComaError: there are checkpoints, and all are damaged.
    """
    candidates = world.run_on_rank0(lambda: [str(folder) for folder in checkpoints(run)])
    for name in candidates:
        folder = Path(name)
        world.run_on_rank0(lambda folder=folder: _check_format(folder))  # type: ignore[misc]
        damage = [reason for reason in world.gather(_damage(folder, world)) if reason]
        if not damage:
            world.run_on_rank0(lambda folder=folder: _update_latest(folder))  # type: ignore[misc]
            return folder
        if world.is_rank0:
            logger.warning("checkpoint %s is damaged (%s): trying the one before", folder, damage[0])
    if candidates:
        raise ComaError(f"every checkpoint in {run / CHECKPOINTS_NAME} is damaged: start anew with another --out")
    return None


def _check_format(folder: Path) -> None:
    """Raise UsageError for a checkpoint of another format; one that cannot be read is left to `_damage`."""
    try:
        content = json.loads((folder / MANIFEST_NAME).read_text())
        version = content.get("format", 1)
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if version != FORMAT and (_HASH not in content or content == sealed(_without_hash(content))):
        raise UsageError(other_format(folder, version))


def _damage(folder: Path, world: World) -> str | None:
    """Return what is wrong with this rank's share of a checkpoint, None if nothing is."""
    try:
        files = _read_manifest(folder)["files"]
    except OSError:
        return f"{MANIFEST_NAME} is missing or unreadable"
    except (ValueError, AttributeError):
        return f"the bytes of {MANIFEST_NAME} have changed"
    for place, (name, seal) in enumerate(files.items()):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            if path.stat().st_size != seal["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {seal['bytes']}"
            if place % world.size == world.rank and hash_file(path) != seal[_HASH]:
                return f"the bytes of {name} have changed"
        except OSError as error:
            return f"{name} cannot be read: {_reason(error)}"
    return None


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `checkpoint.json` with its hash."""
    return {**content, _HASH: xxhash.xxh3_64_hexdigest(json.dumps(content).encode())}


def _without_hash(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != _HASH}


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of `checkpoint.json`; raise ValueError if it has changed."""
    content: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text())
    bare = _without_hash(content)
    names = {"format", "loss_scale", "files", *(field.name for field in fields(TrainingState))}
    if content != sealed(bare) and content.keys() != names:  # early ones of this format have no hash
        raise ValueError(f"{folder / MANIFEST_NAME} has changed")
    return bare


def _update_latest(folder: Path) -> None:
    """Let `latest` name a checkpoint; it names another after damage, or after a save that was killed in between."""
    latest = folder.parent / LATEST_NAME
    if latest.is_dir() and not latest.is_symlink():  # of no use, and in the way
        shutil.rmtree(latest)
    if not latest.is_file() or latest.read_bytes().decode(errors="replace") != folder.name + "\n":
        write_atomically(latest, folder.name + "\n")


def _seal(path: Path) -> dict[str, Any]:
    """Flush a file to disk and return its size and hash."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, _HASH: hash_file(path)}


@contextmanager
def _as_coma_error(step: int, folder: Path) -> Iterator[None]:
    """Raise ComaError, which names the last whole checkpoint, for the errors of a full or failing disk."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        before = next((path.name for path in checkpoints(folder.parent.parent)), None)
        raise ComaError(
            f"the checkpoint of step {step} could not be written to {folder.parent}: {_reason(error)}; "
            + (f"{before} is whole" if before else "there is none before it")
            + ": make room, or keep fewer with --keep-last 1, and give the same command again"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).splitlines()[0].removeprefix("Error while serializing: ")


def _prune(newest: Path, retention: Retention) -> None:
    """Delete older checkpoints; nothing that has another name.

    Those of later steps are damaged, or the run would have resumed from them: they do not count.
    """
    step = checkpoint_step(newest)
    whole = [path for path in checkpoints(newest.parent.parent) if checkpoint_step(path) <= step]
    for path in whole[retention.last :]:
        if not retention.is_milestone(checkpoint_step(path)):
            shutil.rmtree(path, ignore_errors=True)
