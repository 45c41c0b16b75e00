"""Extraction of a split's features on several processes: the same as one process takes, to the last bit.

Legend: N samples of a split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from coma.evaluation.extraction.processes import BackboneName, Processes, loaded, run_on, shares, use_threads
from coma.evaluation.features import Features, extract, joined
from coma.pipeline import Stream
from coma.shards.manifest import Manifest, load_manifest
from coma.shards.write.worker import Tally


@dataclass(frozen=True)
class FeatureJob:
    """Some consecutive batches of a split."""

    backbone: BackboneName
    split: Path
    """Folder of the split."""
    batches: range
    batch_size: int
    processes: Processes

    @property
    def name(self) -> str:
        """Name of what it makes."""
        return f"features of split {self.split.name}"

    def run(self, report: Callable[[Tally], None]) -> list[npt.NDArray[Any] | None]:
        """Return features, labels and samples, as `Features` has them."""
        use_threads(self.processes)
        device, told = self.processes.here(), 0
        backbone = loaded(self.backbone, device)

        def tell(done: int) -> None:
            nonlocal told
            report(Tally(done - told))
            told = done

        with Stream(
            load_manifest(self.split),
            batch_size=self.batch_size,
            training=False,
            device=device,
            start_samples=self.batches.start * self.batch_size,
            workers=self.processes.threads,
            **backbone.stream_options(),
        ) as stream:
            features = extract(backbone.module, islice(stream, len(self.batches)), tell)
        return [None if each is None else each.numpy() for each in (features.x, features.labels, features.samples)]


def extract_on(
    processes: Processes,
    backbone: BackboneName,
    manifest: Manifest,
    batch_size: int,
    done: Callable[[int], None] = lambda _: None,
) -> Features:
    """Extract a split's features in the manifest's order; `done` is called with the images done since the last call.

    Raises what `extract` raises.
    """
    batches = -(-len(manifest) // batch_size)
    cuts = shares(batches, processes) or [range(0)]  # of which extraction says that there is none
    jobs = [FeatureJob(backbone, manifest.folder, share, batch_size, processes) for share in cuts]
    results = {job.batches.start: result for job, result in run_on(processes, jobs, done)}
    parts = [[None if each is None else torch.from_numpy(each) for each in results[start]] for start in sorted(results)]
    return joined([Features(x, labels, samples) for x, labels, samples in parts])  # type: ignore[arg-type]
