"""Everything before the first step: what the configuration comes to, where it goes, the network."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coma.errors import UsageError
from coma.runs.read import checkpoint_step, latest_checkpoint
from coma.shards.files import folder_at, without_credentials
from coma.shards.manifest import Manifest, find_data, read_manifest
from coma.training.config.ds_config import read_ds_config
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.config.options import PretrainConfig, RunConfig
from coma.training.config.resolve import ResolvedRun, resolve
from coma.training.engine.nvme import check_nvme_folder
from coma.training.logs import messages
from coma.training.logs.metrics import METRICS_NAME
from coma.training.processes.world import World
from coma.training.run_folder import RunFolder, choose_run, library_versions
from coma.training.tasks.finetuning import Finetuning
from coma.training.tasks.pretraining import Pretraining
from coma.training.tasks.previews import preview_path
from coma.training.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is ready to begin; nothing has been written yet."""

    config: RunConfig
    resolved: ResolvedRun
    folder: RunFolder
    manifest: Manifest
    task: Task
    stream_options: dict[str, Any]
    """Of the stream that it trains on."""
    facts: dict[str, Any]
    """What config.json says beside the resolved."""


def prepare(config: RunConfig, world: World) -> Prepared:
    """Resolve a configuration, and see that every rank comes to the same.

    Raises:
        UsageError, DataError: something in it is wrong. One rank says so, the others leave quietly.
    """

    def resolve_here() -> tuple[Manifest, ResolvedRun, Task, dict[str, Any]]:
        deepspeed = read_ds_config(config.ds_config)
        data = folder_at(config.data) if config.data else find_data(Path.cwd())
        manifest = read_manifest(data)
        torch.manual_seed(config.seed)  # the same initial weights on every rank
        task = make_task(config, manifest)
        resolved = resolve(
            config,
            deepspeed,
            data=without_credentials(str(data.absolute())),
            fingerprint=manifest.fingerprint,
            samples_per_epoch=len(manifest),
            world_size=world.size,
            device=world.device.type,
            has_bf16=world.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
            init_digest=task.source_digest,
        )
        check_nvme_folder(resolved.deepspeed)
        return manifest, resolved, task, task.stream_options(resolved.steps * resolved.batch_size)

    manifest, resolved, task, stream_options = world.together(resolve_here)
    with world.said_once():
        compare(world.gather((socket.gethostname(), common_facts(config, resolved))))
    return Prepared(
        config=config,
        resolved=resolved,
        folder=world.agree(lambda: choose_run(config, resolved)),
        manifest=manifest,
        task=task,
        stream_options=stream_options,
        facts={**task.facts(), "device_name": device_name(world.device)},
    )


def make_task(config: RunConfig, manifest: Manifest) -> Task:
    """Return what a configuration asks to be trained. Raises what the task does."""
    if isinstance(config, FinetuneConfig):
        return Finetuning(config, manifest)
    assert isinstance(config, PretrainConfig)
    return Pretraining(config, manifest)


def common_facts(config: RunConfig, resolved: ResolvedRun) -> dict[str, Any]:
    """Return what must be the same on all ranks; where data lie and how many threads decode them need not."""
    own = ("data", "init", "source", "out", "workers", "devices", "hostfile")
    facts: dict[str, Any] = {**library_versions(), "data's fingerprint": resolved.fingerprint}
    for fields in (config.to_json(), resolved.to_json()):
        facts.update((name, value) for name, value in _flat(fields) if name not in own)
    return facts


def compare(ranks: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Compare every rank's (host, `common_facts`) with rank 0's.

    Raises:
        UsageError: naming the first rank that differs, and in what.
    """
    first_host, first = ranks[0]
    for rank, (host, facts) in enumerate(ranks):
        for name in {**first, **facts}:
            if facts.get(name) != first.get(name):
                raise UsageError(
                    f"rank {rank} on {host} has {name} {facts.get(name)!r} where rank 0 on {first_host} has "
                    f"{first.get(name)!r}: give all the same installation, command and data"
                )


def _flat(fields: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def tell(prepared: Prepared, begun_at: int) -> None:
    """Log what a run was resolved to."""
    if prepared.folder.beside and not begun_at:
        logger.info("%s", prepared.folder.beside)
    for line in messages.opening(
        prepared.config,
        prepared.resolved,
        prepared.task.opening(),
        run=str(prepared.folder.path),
        device_name=prepared.facts["device_name"],
        begun_at=begun_at,
    ):
        logger.info("%s", line)
    devices = torch.cuda.device_count()
    if prepared.resolved.device == "cuda" and prepared.resolved.world_size == 1 < devices:
        logger.info("%-9s this machine has %d GPUs: --devices %d uses them all", "", devices, devices)


def summarise(
    run: Path, resolved: ResolvedRun, *, elapsed_s: float, images_per_s: float | None
) -> dict[str, Any]:
    """Return a run's result, read from its folder."""
    checkpoint = latest_checkpoint(run)
    step = checkpoint_step(checkpoint) if checkpoint else 0
    steps = [json.loads(line) for line in (run / METRICS_NAME).read_text().splitlines()]
    losses = [line["loss"] for line in steps if line.get("loss") is not None]
    tested = [line for line in steps if "accuracy" in line][-1:]
    picture, report = preview_path(run, resolved.steps), run / "report.html"
    return {
        "run": str(run),
        "steps": step,
        "epochs": step * resolved.batch_size / resolved.samples_per_epoch,
        "loss": losses[-1] if losses else None,
        **{name: line[name] for line in tested for name in ("accuracy", "accuracy_top5") if name in line},
        "images_per_s": images_per_s,
        "elapsed_s": elapsed_s,
        "finished": step >= resolved.steps,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "weights": str(checkpoint / "weights.safetensors") if checkpoint else None,
        "picture": str(picture) if picture.exists() else None,
        "report": str(report) if report.exists() else None,
    }


def device_name(device: torch.device) -> str:
    """Return what to call the device: `NVIDIA H200`, `CPU (2 threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"
