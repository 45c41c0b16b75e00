"""The stream: an iterator of batches of complementary views, from a sharded data set to the device."""

import logging
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from coma.errors import ComaError, DataError, UsageError
from coma.pipeline.crops import CROP_SCALE
from coma.pipeline.faults import Ledger, default_budget
from coma.pipeline.loader import Loader, LoaderOptions
from coma.pipeline.order import Planner, SampleOrder, Step, mixed
from coma.pipeline.sizes import CropSizes
from coma.pipeline.views import view_sizes
from coma.shards.files import folder_at, without_credentials
from coma.shards.manifest import Manifest, read_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a global batch, on the device: B images of U mask units, in K views.

    View k sees the units `units[:, sum(view_sizes[:k]) : sum(view_sizes[:k + 1])]`, raster indices into the grid.
    """

    images: Tensor
    """[B, 3, H, W] float32 in channels-last order, normalised with `coma.pipeline.MEAN` and `STD`."""
    units: Tensor
    """[B, U] int64: a permutation of 0..U-1 that lays the K views side by side."""
    view_sizes: tuple[int, ...]
    """Number of units of each of the K views; they add up to U."""
    labels: Tensor | None
    """[B] int64, or None for unlabelled data."""
    samples: Tensor
    """[B] int64: the global sample ids asked for (a damaged one has a substitute's image and label)."""


class Stream:
    """Batches of complementary views out of a sharded data set, read and decoded ahead of the consumer.

    What a step holds depends on (manifest, seed, step) alone. Training streams are endless: each epoch is a
    new permutation of the samples, and a batch may hold the end of one and the beginning of the next. With
    `training=False` the stream is one pass in the manifest's order with centre crops; its last batch may be
    short, and a rank whose part of it is empty ends one batch earlier.

    A sample that cannot be read or decoded is replaced by another one, the same in every run, and the ledger records
    it.

    Args:
        data: a sharded data set, one split's folder, or its manifest; a URL such as s3://bucket/photos-shards
            is read by way of a cache on this machine's disk.
        split: name of the split.
        batch_size: samples in a global batch, over all ranks.
        image_size: side of the images in pixels, or `CropSizes`, which grow over a run and name the unit themselves.
        views: K, complementary views of each image.
        unit_size: side of a mask unit in pixels.
        seed: random seed of order, crops, flips and views.
        rank, world_size: this process takes part `rank` of `world_size` of each global batch.
        device: where batches end up.
        decode: where images are decoded: "cpu", "gpu" (only if the device is one), or "auto", on the device.
        start_samples: samples consumed before, by all ranks together.
        training: random crops in an endless shuffled order, or one pass for evaluation.
        crop_scale: least and greatest part of an image's area that a training crop shows.
        workers: decoder threads; by default this process's share of the machine's cores.
        prefetch: batches kept ready ahead of the consumer.
        ledger: JSON-lines file that substitutions are appended to (step, key, shard, reason, substitute).
        fault_budget: number of different damaged samples that this rank tolerates; by default a thousandth of the
            samples, at least 10.

    Raises:
        UsageError: batch_size is no multiple of world_size, image_size none of unit_size, or a number is out of range.
        DataError: the data set is missing or damaged; while iterating, a shard vanished or the fault budget
            is used up.
        ComaError: while iterating, the ledger cannot be written.

    Example:
        >>> with Stream("photos-shards", batch_size=256) as stream:  # doctest: +SKIP
        ...     for batch in stream:
        ...         loss = model(batch.images, batch.units)
    """

    def __init__(
        self,
        data: Path | str | Manifest,
        *,
        split: str = "train",
        batch_size: int,
        image_size: int | CropSizes = 224,
        views: int = 2,
        unit_size: int = 32,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        start_samples: int = 0,
        training: bool = True,
        crop_scale: tuple[float, float] = CROP_SCALE,
        decode: str = "auto",
        workers: int | None = None,
        prefetch: int = 2,
        ledger: Path | None = None,
        fault_budget: int | None = None,
    ) -> None:
        if isinstance(image_size, int):
            image_size = CropSizes(image_size, image_size, unit_size)
        self.sizes = image_size
        self._options = LoaderOptions(
            batch_size=batch_size,
            sizes=image_size,
            views=views,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=_device(device),
            training=training,
            crop_scale=crop_scale,
            decode=decode,
            workers=workers if workers is not None else _share_of_cores(world_size),
            prefetch=prefetch,
        )
        if start_samples < 0:
            raise UsageError(f"start_samples is {start_samples}; give 0 or more")
        self.view_sizes = view_sizes(self.sizes.units(self.sizes.last), views)  # of images of full size
        self.manifest = data if isinstance(data, Manifest) else read_manifest(folder_at(data), split)
        order = SampleOrder(self.manifest, seed, mixed=self._mixed()) if training else None
        self._planner = Planner(order, len(self.manifest), batch_size)
        budget = default_budget(len(self.manifest)) if fault_budget is None else fault_budget
        self._ledger = Ledger(None if ledger is None else Path(ledger), self.manifest, budget)
        self._consumed = start_samples
        self._loader: Loader | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._closed = False

    def _mixed(self) -> bool:
        """Whether each shard is a random draw of the data set, judged by the labels."""
        label = self.manifest.label
        is_mixed = label is None or mixed(label, self.manifest.shard_lengths)
        if not is_mixed:
            folder = without_credentials(str(self.manifest.folder))
            log.info(
                "the shards of %s are sorted by class: samples are drawn from all of them at a time", folder
            )
        return is_mixed

    @property
    def samples_per_epoch(self) -> int:
        """Samples in the split."""
        return len(self.manifest)

    @property
    def consumed(self) -> int:
        """Samples handed out so far, over all ranks and epochs."""
        return self._consumed

    def plan(self, step: int) -> Step:
        """The global batch of a step, without reading anything.

        Args:
            step: number of the step, from 1, in batches of this stream's size since the first sample.

        Returns:
            its samples and epochs, each [batch_size] int64 (a single pass's last step may be short).

        Raises:
            IndexError: there is no such step.
        """
        planned = self._planner.at((step - 1) * self._planner.batch_size) if step >= 1 else None
        if planned is None:
            raise IndexError(f"no step {step} in one pass over {self.samples_per_epoch} samples")
        return planned

    def __iter__(self) -> Self:
        """Return the stream itself: there is one position, and each batch is handed out once."""
        return self

    def __next__(self) -> Batch:
        """Wait for the next batch; the class's docstring lists what is raised."""
        if self._closed:
            raise UsageError("the stream is closed")
        loader = self._loader or self._start()
        ready = loader.get()
        if ready is None:
            raise StopIteration
        try:
            self._ledger.record(ready.substitutions)
        except ComaError:
            self._stop()  # else the next call would skip this batch
            raise
        self._consumed = ready.stop_sample
        if ready.event is not None:
            _hand_over(ready.event, ready.images, ready.units, ready.samples, ready.labels)
        sizes = view_sizes(ready.units.shape[1], self._options.views)
        return Batch(ready.images, ready.units, sizes, ready.labels, ready.samples)

    def state_dict(self) -> dict[str, str | int]:
        """The whole state of the stream: fingerprint of the manifest, seed, samples consumed."""
        return {
            "fingerprint": self.manifest.fingerprint,
            "seed": self._options.seed,
            "samples": self._consumed,
        }

    def load_state_dict(self, state: dict[str, str | int]) -> None:
        """Resume from another stream's `state_dict`, whatever its world size, batch size or workers were.

        Raises:
            DataError: the state is of other data.
            UsageError: the state is of another seed.
        """
        if state["fingerprint"] != self.manifest.fingerprint:
            raise DataError(
                f"{without_credentials(str(self.manifest.folder))} has fingerprint "
                f"{self.manifest.fingerprint}, the state was taken of data with fingerprint "
                f"{state['fingerprint']}; give the same data set, or start anew"
            )
        if state["seed"] != self._options.seed:
            raise UsageError(
                f"the state was taken with seed {state['seed']}, this stream has seed {self._options.seed}; "
                "give the same seed, or start anew"
            )
        self._stop()
        self._consumed = int(state["samples"])

    def close(self) -> None:
        """End the threads and close the shards; any thread may call this.

        The stream gives no batches afterwards, and a loop that waits for one ends.
        """
        self._closed = True
        self._stop()

    def _start(self) -> Loader:
        loader = Loader(self.manifest, self._planner, self._options, self._consumed)
        finalizer = weakref.finalize(self, loader.close)  # a forgotten stream ends its threads
        finalizer.atexit = False  # the loader has an exit handler of its own
        self._loader, self._finalizer = loader, finalizer
        if self._closed:  # by another thread meanwhile, which may have had no loader to stop
            self._stop()
        return loader

    def _stop(self) -> None:
        finalizer = self._finalizer
        self._loader = self._finalizer = None
        if finalizer is not None:
            finalizer()

    def __enter__(self) -> Self:
        """Return the stream, which is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the threads."""
        self.close()


def _hand_over(event: torch.cuda.Event, *tensors: Tensor | None) -> None:
    """Make the consumer's CUDA stream wait for a batch, and the allocator for the consumer."""
    for tensor in tensors:
        if tensor is not None:
            current = torch.cuda.current_stream(tensor.device)
            current.wait_event(event)
            tensor.record_stream(current)


def _device(device: torch.device | str) -> torch.device:
    """The device, with its index if it is a GPU, as threads do not inherit the current one."""
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


def _share_of_cores(world_size: int) -> int:
    """Number of cores that this process may use, divided among the ranks of this machine that share them."""
    told, cores = os.environ, len(os.sched_getaffinity(0))
    local_ranks = told.get("LOCAL_WORLD_SIZE") or told.get("LOCAL_SIZE")  # torchrun's, DeepSpeed's launcher's
    if local_ranks is None and int(told.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        if cores < (os.cpu_count() or 1):
            return cores  # srun has given each task its own
        local_ranks = told.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0].split(",")[0]  # 8(x2),4
    return max(1, cores // max(1, int(local_ranks or world_size)))
