"""Everything before the first step: what the configuration comes to, where it goes, the network."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coma.errors import UsageError
from coma.export.folder import read_export
from coma.runs import build_model, checkpoint_step, latest_checkpoint, training_stream
from coma.shards.files import folder_at, without_credentials
from coma.shards.manifest import Manifest, find_data, read_manifest
from coma.training import init, story
from coma.training.config import PretrainConfig
from coma.training.dsconfig import read_ds_config
from coma.training.metrics import METRICS_NAME
from coma.training.plan import Plan, resolve
from coma.training.previews import preview_path
from coma.training.run_folder import RunFolder, choose_run, library_versions
from coma.training.world import World

if TYPE_CHECKING:
    from coma.autoencoder import MaskedAutoencoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is ready to begin; nothing has been written yet."""

    config: PretrainConfig
    plan: Plan
    folder: RunFolder
    manifest: Manifest
    model: MaskedAutoencoder
    stream_options: dict[str, Any]
    """Of the stream that it trains on."""
    facts: dict[str, Any]
    """What config.json says beside the plan; the views are those that the network encodes."""


def prepare(config: PretrainConfig, world: World) -> Prepared:
    """Resolve a configuration, and see that every rank comes to the same.

    Raises:
        UsageError, DataError: something in it is wrong. One rank says so, the others leave quietly.
    """

    def resolve_here() -> tuple[Manifest, Plan, MaskedAutoencoder, dict[str, Any]]:
        file = read_ds_config(config.ds_config)
        data = folder_at(config.data) if config.data else find_data(Path.cwd())
        manifest = read_manifest(data)
        export = None if config.init is None else read_export(config.init)
        if export:
            init.check(export, config)
        plan = resolve(
            config,
            file,
            data=without_credentials(str(data.absolute())),
            fingerprint=manifest.fingerprint,
            samples_per_epoch=len(manifest),
            world_size=world.size,
            device=world.device.type,
            has_bf16=world.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
            init_digest=export.digest() if export else None,
        )
        torch.manual_seed(config.seed)  # the same initial weights on every rank
        model = build_model(config.to_json())
        if export:
            init.take_up(model, export, config)
        options = training_stream(model, config.to_json(), plan.steps * plan.batch_size)
        return manifest, plan, model, options

    manifest, plan, model, stream_options = world.together(resolve_here)
    with world.said_once():
        compare(world.gather((socket.gethostname(), common_facts(config, plan))))
    return Prepared(
        config=config,
        plan=plan,
        folder=world.agree(lambda: choose_run(config, plan)),
        manifest=manifest,
        model=model,
        stream_options=stream_options,
        facts={
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "units": model.units,
            "view_sizes": [seen.shape[1] for seen in model.seen_units(torch.arange(model.units)[None])],
            "device_name": device_name(world.device),
        },
    )


def common_facts(config: PretrainConfig, plan: Plan) -> dict[str, Any]:
    """Return what must be the same on all ranks; where data lie and how many threads decode them need not."""
    own = ("data", "init", "out", "workers", "devices", "hostfile")
    facts: dict[str, Any] = {**library_versions(), "data's fingerprint": plan.fingerprint}
    for fields in (config.to_json(), plan.to_json()):
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
    for line in story.opening(
        prepared.config,
        prepared.plan,
        run=str(prepared.folder.path),
        found=prepared.config.data is None,
        **prepared.facts,
        unit_size=prepared.model.encoder.unit_size,
        begun_at=begun_at,
    ):
        logger.info("%s", line)
    devices = torch.cuda.device_count()
    if prepared.plan.device == "cuda" and prepared.plan.world_size == 1 < devices:
        logger.info("%-9s this machine has %d GPUs: --devices %d uses them all", "", devices, devices)


def summarise(run: Path, plan: Plan, *, elapsed_s: float, images_per_s: float | None) -> dict[str, Any]:
    """Return a run's result, read from its folder."""
    checkpoint = latest_checkpoint(run)
    step = checkpoint_step(checkpoint) if checkpoint else 0
    steps = [json.loads(line) for line in (run / METRICS_NAME).read_text().splitlines()]
    losses = [line["loss"] for line in steps if line.get("loss") is not None]
    picture, report = preview_path(run, plan.steps), run / "report.html"
    return {
        "run": str(run),
        "steps": step,
        "epochs": step * plan.batch_size / plan.samples_per_epoch,
        "loss": losses[-1] if losses else None,
        "images_per_s": images_per_s,
        "elapsed_s": elapsed_s,
        "finished": step >= plan.steps,
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
