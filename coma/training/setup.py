"""Preparation of a run: its configuration resolved, its data and network loaded, all compared on every rank."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from coma.errors import UsageError
from coma.installed.cuda import check_cuda
from coma.pipeline import Stream
from coma.pipeline.arrays import check_decode
from coma.pipeline.preprocessing import DEFAULT
from coma.runs.names import LEDGER_NAME
from coma.shards.files import folder_at, without_credentials
from coma.shards.manifest import Manifest, Mixture, find_data, read_manifest, read_mixture
from coma.shards.shares import named_sources
from coma.training.config.ds_config import read_ds_config
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.config.options import PretrainConfig, RunConfig
from coma.training.config.resolve import ResolvedRun, resolve
from coma.training.config.schedule import Segment
from coma.training.engine.engine import check_half_precision
from coma.training.engine.nvme import check_nvme_folder
from coma.training.processes.world import World
from coma.training.run_folder import result_versions
from coma.training.tasks.finetuning import Finetuning
from coma.training.tasks.pretraining import Pretraining
from coma.training.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is ready to begin; nothing has been written yet."""

    config: RunConfig
    resolved: ResolvedRun
    manifest: Manifest
    task: Task
    stream_options: dict[str, Any]
    """Arguments of the training stream that the task asks for."""
    facts: dict[str, Any]
    """What config.json records beside the resolved run."""

    @property
    def decoding(self) -> dict[str, Any]:
        """Arguments of every stream of the run that say how images are decoded, and how many may be damaged."""
        given = {"workers": self.config.workers, "fault_budget": self.config.fault_budget}
        return {"decode": self.config.decode, **{name: value for name, value in given.items() if value is not None}}

    def with_source_names(self, names: tuple[str, ...]) -> Prepared:
        """Return the run on a mixture with the names that its data sets had when it began."""
        assert isinstance(self.manifest, Mixture)
        manifest = replace(self.manifest, names=names)
        return replace(self, manifest=manifest, resolved=replace(self.resolved, sources=sources_of(manifest)))

    def extended(self, segments: tuple[Segment, ...]) -> Prepared:
        """Return the run with these segments; crops grow as was planned when it began."""
        resolved = replace(self.resolved, segments=segments)
        samples = segments[0].end * resolved.batch_size
        return replace(self, resolved=resolved, stream_options=self.task.stream_options(samples))


def prepare(config: RunConfig, world: World) -> Prepared:
    """Resolve a configuration, build the network, and compare the result on all ranks; collective.

    Raises:
        UsageError, DataError: something in it is wrong. One rank raises it, the others leave quietly.
    """

    def resolve_here() -> tuple[Manifest, ResolvedRun, Task, dict[str, Any]]:
        check_cuda(quiet=not world.is_rank0)
        deepspeed = read_ds_config(config.ds_config)
        data, manifest = read_data(config)
        check_decode(manifest.pixels, config.decode)
        torch.manual_seed(config.seed)  # the same initial weights on every rank
        task = make_task(config, manifest)
        resolved = resolve(
            config,
            deepspeed,
            data=data,
            fingerprint=manifest.fingerprint,
            samples_per_epoch=len(manifest),
            world_size=world.size,
            device=world.device.type,
            has_bf16=world.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
            init_digest=task.init_digest,
            sources=sources_of(manifest),
            pixels=None if task.preprocessing == DEFAULT else task.preprocessing.to_json(),
        )
        check_nvme_folder(resolved.deepspeed)
        check_half_precision(resolved)
        return manifest, resolved, task, task.stream_options(resolved.steps * resolved.batch_size)

    manifest, resolved, task, stream_options = world.run_on_all(resolve_here)
    with world.raise_on_rank0():
        compare(world.gather((socket.gethostname(), common_facts(config, resolved))))
    return Prepared(
        config=config,
        resolved=resolved,
        manifest=manifest,
        task=task,
        stream_options=stream_options,
        facts={**task.facts(), "device_name": device_name(world.device)},
    )


def read_data(config: RunConfig) -> tuple[str | tuple[str, ...], Manifest]:
    """Return the absolute name of a run's data, or of each of several, and their manifest.

    Raises:
        UsageError, DataError: they are missing, damaged, or of different kinds.
    """
    if isinstance(config.data, tuple):
        return tuple(str(each.absolute()) for each in named_sources(config.data)), read_mixture(config.data)
    data = folder_at(config.data) if config.data else find_data(Path.cwd())
    return without_credentials(str(data.absolute())), read_manifest(data)


def sources_of(manifest: Manifest) -> tuple[dict[str, Any], ...]:
    """Return `ResolvedRun.sources`."""
    if not isinstance(manifest, Mixture):
        return ()
    columns = zip(manifest.names, manifest.weights, manifest.members, strict=True)
    whole = sum(manifest.weights)
    return tuple(
        {
            "name": name,
            "share": weight / whole,
            "weight": weight,
            "images": len(member),
            "fingerprint": member.fingerprint,
        }
        for name, weight, member in columns
    )


def open_stream(prepared: Prepared, world: World, run: Path, start_samples: int) -> Stream:
    """Return this rank's stream of training batches, after the first `start_samples` samples of the run."""
    return Stream(
        prepared.manifest,
        batch_size=prepared.resolved.batch_size,
        seed=prepared.config.seed,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        start_samples=start_samples,
        ledger=run / LEDGER_NAME,
        **prepared.stream_options,
        **prepared.decoding,
    )


def make_task(config: RunConfig, manifest: Manifest) -> Task:
    """Return the task of a configuration. Raises what its constructor does."""
    if isinstance(config, FinetuneConfig):
        return Finetuning(config, manifest)
    assert isinstance(config, PretrainConfig)
    return Pretraining(config, manifest)


def common_facts(config: RunConfig, resolved: ResolvedRun) -> dict[str, Any]:
    """Return what must be equal on all ranks; where data lie and how many threads decode them need not be."""
    own = ("data", "sources", "init", "source", "out", "workers", "devices", "hostfile")
    facts: dict[str, Any] = {**result_versions(), "data's fingerprint": resolved.fingerprint}
    for fields in (config.to_json(), resolved.to_json()):
        facts.update((name, value) for name, value in _flat(fields) if name not in own)
    return facts


def compare(ranks: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Compare every rank's (host, `common_facts`) with rank 0's.

    Raises:
        UsageError: a rank differs; the first one is named, with the value.
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


def device_name(device: torch.device) -> str:
    """Return the name of a device: `NVIDIA H200`, `CPU (2 threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"
