"""One job of `coma embed`: the features of consecutive parts of a section, in any process.

Legend: B images of a batch, C channels, h x w the map of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coma.embedding.loose import CheckedImages, check_images
from coma.embedding.parts import Features, Part, write_part
from coma.errors import DivergedError, UsageError
from coma.evaluation.extraction.processes import BackboneName, Processes, loaded, use_threads
from coma.evaluation.maps import vectors, vectors_and_maps
from coma.exports.backbone import Backbone
from coma.pipeline import Stream
from coma.shards.manifest import load_manifest
from coma.shards.sources.listing import SourceImage
from coma.shards.write.worker import Tally

if TYPE_CHECKING:
    from coma.pipeline.stream import Batch


_MOST_HALF = 65_504.0


@dataclass(frozen=True)
class Computation:
    """What is computed of each image, and where."""

    backbone: BackboneName
    patches: bool
    stride: int | None
    half: bool
    batch_size: int
    processes: Processes
    work: Path

    def features(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return vectors [B, C] and, if asked for, maps [B, h, w, C], on the CPU, of the batch in float32."""
        maps = None
        with torch.inference_mode(), torch.autocast(batch.images.device.type, enabled=False):
            if self.patches:
                pooled, maps = vectors_and_maps(backbone.module, batch.images, self.stride)
            else:
                pooled = vectors(backbone.module, batch.images)
        kept = torch.tensor([sample not in batch.damaged for sample in batch.samples.tolist()])
        for values in (pooled, maps):
            good = values[kept.to(values.device)] if values is not None else torch.zeros(1)
            if not bool(good.isfinite().all()):
                raise DivergedError(f"{backbone.origin}: the features of some images are not finite")
            if self.half and len(good) and float(good.abs().max()) > _MOST_HALF:
                raise UsageError(
                    f"--half: a feature of {float(good.abs().max()):,.0f} is beyond float16, which ends at "
                    f"{_MOST_HALF:,.0f}: leave it out"
                )
        dtype = torch.float16 if self.half else torch.float32
        pooled = pooled.to("cpu", dtype)[kept]
        return pooled, None if maps is None else maps.permute(0, 2, 3, 1).to("cpu", dtype)[kept].contiguous()


@dataclass(frozen=True)
class EmbedJob:
    """Consecutive parts of one section: of a split's shards, or of listed images."""

    computation: Computation
    parts: tuple[Part, ...]
    data: Path
    """Split's folder, or root of a source."""
    images: tuple[SourceImage, ...] | None
    """Images of the parts, if they are not sharded."""

    @property
    def name(self) -> str:
        """Name of what it makes."""
        return f"features of images {self.parts[0].start:,} to {self.parts[-1].stop:,}"

    def run(self, report: Callable[[Tally], None]) -> int:
        """Write the parts; return how many images were set aside."""
        use_threads(self.computation.processes)
        device = self.computation.processes.here()
        backbone = loaded(self.computation.backbone, device)
        features = self._of_shards if self.images is None else self._of_listed
        set_aside = 0
        for part, of_part in features(backbone, device, report):
            set_aside += len(of_part.damaged)
            write_part(self.computation.work / part.name, of_part)
        return set_aside

    def _of_shards(
        self, backbone: Backbone, device: str, report: Callable[[Tally], None]
    ) -> Iterator[tuple[Part, Features]]:
        size = self.computation.batch_size
        with Stream(
            load_manifest(self.data),
            batch_size=size,
            training=False,
            device=device,
            mark_damaged=True,
            workers=self.computation.processes.threads,
            start_samples=self.parts[0].start,
            **backbone.stream_options(),
        ) as stream:
            for part in self.parts:
                batches = islice(stream, -(-(part.stop - part.start) // size))
                yield part, self._collected(backbone, batches, report)

    def _of_listed(
        self, backbone: Backbone, device: str, report: Callable[[Tally], None]
    ) -> Iterator[tuple[Part, Features]]:
        """Check the images of the next part while those of one are embedded."""
        with ThreadPoolExecutor(1, "coma-next-part") as ahead:
            checked = ahead.submit(self._checked, self.parts[0])
            try:
                for number, part in enumerate(self.parts):
                    of_part = checked.result()
                    if number + 1 < len(self.parts):
                        checked = ahead.submit(self._checked, self.parts[number + 1])
                    yield part, self._of_checked(part, of_part, backbone, device, report)
                    (self.computation.work / part.images_name).unlink()
            finally:
                checked.cancel()
                self._remove_images(checked)

    def _checked(self, part: Part) -> CheckedImages:
        assert self.images is not None
        first = self.parts[0].start
        images = self.images[part.start - first : part.stop - first]
        file = self.computation.work / part.images_name
        return check_images(self.data, images, file, self.computation.processes.threads)

    def _of_checked(
        self, part: Part, checked: CheckedImages, backbone: Backbone, device: str, report: Callable[[Tally], None]
    ) -> Features:
        places, damaged = checked.places + part.start, {part.start + at: why for at, why in checked.damaged.items()}
        report(Tally(len(damaged), set_aside=len(damaged)))
        if not len(places):
            return Features(places, np.empty((0, 0), np.float32), None, damaged)
        with Stream(
            checked.manifest,
            batch_size=self.computation.batch_size,
            training=False,
            device=device,
            mark_damaged=True,
            workers=self.computation.processes.threads,
            **backbone.stream_options(),
        ) as stream:
            of_good = self._collected(backbone, stream, report)
        damaged |= {int(places[sample]): reason for sample, reason in of_good.damaged.items()}
        return Features(places[of_good.samples], of_good.vectors, of_good.maps, damaged)

    def _collected(self, backbone: Backbone, batches: Iterator[Batch], report: Callable[[Tally], None]) -> Features:
        """Compute the features of batches; samples are those of their stream."""
        samples, pooled, maps = list[Tensor](), list[Tensor](), list[Tensor]()
        damaged: dict[int, str] = {}
        for batch in batches:
            of_batch, maps_of_batch = self.computation.features(backbone, batch)
            kept = [sample for sample in batch.samples.tolist() if sample not in batch.damaged]
            samples.append(torch.tensor(kept, dtype=torch.int64))
            pooled.append(of_batch)
            maps += [] if maps_of_batch is None else [maps_of_batch]
            damaged |= batch.damaged
            report(Tally(len(batch.samples), set_aside=len(batch.damaged)))
        together = torch.cat(maps).numpy() if maps else None
        return Features(torch.cat(samples).numpy(), torch.cat(pooled).numpy(), together, damaged)

    def _remove_images(self, checked: Future[CheckedImages]) -> None:
        """Remove the images of parts that are not embedded, after an error."""
        with suppress(Exception):
            checked.result()
        for part in self.parts:
            (self.computation.work / part.images_name).unlink(missing_ok=True)
