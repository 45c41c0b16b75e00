"""The stream: an iterator of batches of complementary views, from a sharded data set to the device."""

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from coma.errors import ComaError, DataError, UsageError
from coma.pipeline.arguments import device_of, manifest_of, position, share_of_cores
from coma.pipeline.arrays import check_decode
from coma.pipeline.crops import CROP_SCALE, Crops, Flips
from coma.pipeline.faults import Ledger, default_budget
from coma.pipeline.loader import Loader, LoaderOptions
from coma.pipeline.order import Step
from coma.pipeline.plain import shown, whole_number
from coma.pipeline.planning import planner_of
from coma.pipeline.preprocessing import Preprocessing, check_fits, of_data
from coma.pipeline.sizes import CropSizes
from coma.pipeline.views import view_sizes
from coma.shards.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a global batch, on the device: B images of U mask units, in K views.

    View k sees the units `units[:, sum(view_sizes[:k]) : sum(view_sizes[:k + 1])]`, raster indices into the grid.
    """

    images: Tensor
    """[B, C, H, W] float32 in channels-last order, normalised: 8-bit RGB with `coma.pipeline.MEAN` and `STD`,
    others with mean and deviation of the data, unless the stream was given others."""
    units: Tensor
    """[B, U] int64: a permutation of 0..U-1 that lays the K views side by side."""
    view_sizes: tuple[int, ...]
    """Number of units of each of the K views; they add up to U."""
    labels: Tensor | None
    """[B] int64, or None for unlabelled data."""
    samples: Tensor
    """[B] int64: the global sample ids asked for (a damaged one has a substitute's image and label)."""
    damaged: Mapping[int, str] = field(default_factory=dict)
    """Damaged samples among them, by their ids, with the reason."""


class Stream(IterableDataset[Batch]):
    """Batches of complementary views out of a sharded data set, read and decoded ahead of the consumer.

    What a step holds depends on (manifest, seed, step) alone. Training streams are endless: each epoch is a
    new permutation of the samples, and a batch may hold the end of one and the beginning of the next. With
    `training=False` the stream is one pass in the manifest's order with centre crops; its last batch may be
    short, and a rank whose part of it is empty ends one batch earlier.

    A sample that cannot be read or decoded is replaced by another one, the same in every run, and the ledger records
    it.

    Threads may share a stream: each batch goes to one of them. A copy, an unpickled stream and a process forked
    before any stream began go on by themselves from the place that the stream had. Numbers may be numpy's or torch's.

    Args:
        data: a sharded data set, one split's folder, or its manifest; a URL such as s3://bucket/photos-shards
            is read by way of a cache on this machine's disk. Or a mixture: a list of several, each with its share as
            "photos-shards:0.7" or ("photos-shards", 0.7), or all without, so that each is shown as it has images.
        split: name of the split.
        batch_size: samples in a global batch, over all ranks.
        image_size: side of the images in pixels, or `CropSizes`, which grow over a run and name the unit themselves.
        views: K, complementary views of each image.
        unit_size: side of a mask unit in pixels.
        seed: random seed of order, crops, flips and views.
        rank: which part of each global batch this process takes, from 0.
        world_size: number of parts of a global batch, one per process.
        device: where batches end up.
        decode: where images are decoded: "cpu", "gpu" (only if the device is one), or "auto", on the device.
        start_samples: samples consumed before, by all ranks together.
        training: random crops in an endless shuffled order, or one pass for evaluation.
        crop_scale: least and greatest part of an image's area that a training crop shows.
        flips: mirrorings of training crops, each of a half of them: "horizontal", "none", or "both".
        quarter_turns: whether training crops are turned by none to three quarters, for images without an up.
        windows: for `training=False`, a window of each sample in pixels, in place of its centre crop.
        workers: decoder threads; by default this process's share of the machine's cores.
        prefetch: batches kept ready ahead of the consumer.
        preprocessing: mean, deviation, filter and centre crop that a network wants; by default `Preprocessing()` for
            8-bit RGB images, and mean and deviation of the data for others. Of the crops it says evaluation's.
        ledger: JSON-lines file that substitutions are appended to (step, key, shard, reason, substitute).
        mark_damaged: leave damaged samples to the caller: no others are shown in their place, and neither ledger nor
            budget counts them. `Batch.damaged` names them, and their images mean nothing.
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
        data: Path | str | Manifest | Sequence[Path | str | tuple[Path | str, float]],
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
        flips: Flips = "horizontal",
        quarter_turns: bool = False,
        decode: str = "auto",
        workers: int | None = None,
        prefetch: int = 2,
        preprocessing: Preprocessing | None = None,
        ledger: Path | None = None,
        fault_budget: int | None = None,
        mark_damaged: bool = False,
        windows: Crops | None = None,
    ) -> None:
        if not isinstance(image_size, CropSizes):
            side = whole_number("image_size", image_size)
            image_size = CropSizes(side, side, unit_size)
        world_size = whole_number("world_size", world_size)
        self.sizes = image_size
        self._options = LoaderOptions(
            batch_size=batch_size,
            sizes=image_size,
            views=views,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device_of(device),
            training=training,
            crop_scale=crop_scale,
            flips=flips,
            quarter_turns=quarter_turns,
            decode=decode,
            workers=workers if workers is not None else share_of_cores(world_size),
            prefetch=prefetch,
            preprocessing=preprocessing or Preprocessing(),
            mark_damaged=mark_damaged,
            windows=windows,
        )
        plain = self._options
        self._consumed = position("start_samples", start_samples)
        budget = None if fault_budget is None else whole_number("fault_budget", fault_budget, 0)
        self.view_sizes = view_sizes(self.sizes.units(self.sizes.last), plain.views)  # of images of full size
        self.manifest = manifest_of(data, split)
        if preprocessing is None:
            self._options = plain = replace(plain, preprocessing=of_data(self.manifest.pixels))
        else:
            check_fits(preprocessing, self.manifest.pixels, "the network", self.manifest.place)
        check_decode(self.manifest.pixels, plain.decode)
        if windows is not None and len(windows) != len(self.manifest):
            raise UsageError(f"{len(windows)} windows for {len(self.manifest)} samples; give one for each")
        self._planner = planner_of(self.manifest, plain.seed, plain.batch_size, training=plain.training)
        self._ledger = Ledger(
            None if ledger is None else Path(ledger).absolute(),
            self.manifest,
            default_budget(len(self.manifest)) if budget is None else budget,
        )
        self._closed = False
        self._process = os.getpid()
        self._begin_anew()

    @property
    def samples_per_epoch(self) -> int:
        """Samples in the split, or in all data sets of a mixture."""
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
        step = whole_number("step", step)
        planned = self._planner.at((step - 1) * self._planner.batch_size) if step >= 1 else None
        if planned is None:
            raise IndexError(f"no step {step} in one pass over {self.samples_per_epoch} samples")
        return planned

    def __iter__(self) -> Self:
        """Return the stream itself: there is one position, and each batch is handed out once."""
        return self

    def __next__(self) -> Batch:
        """Wait for the next batch; the class's docstring lists what is raised."""
        with self._taking:
            self._refuse_closed()
            loader = self._loader or self._start()
            ready = loader.get()
            if ready is None:
                raise StopIteration
            try:
                if not self._options.mark_damaged:
                    self._ledger.record(ready.substitutions)
            except ComaError:
                self._stop()  # else the next call would skip this batch
                raise
            self._consumed = ready.stop_sample
        if ready.event is not None:
            _hand_over(ready.event, ready.images, ready.units, ready.samples, ready.labels)
        sizes = view_sizes(ready.units.shape[1], self._options.views)
        damaged = {each.sample: each.reason for each in ready.substitutions}
        return Batch(ready.images, ready.units, sizes, ready.labels, ready.samples, damaged)

    def state_dict(self) -> dict[str, str | int]:
        """The whole state of the stream: fingerprint of the manifest, seed, samples consumed."""
        return {"fingerprint": self.manifest.fingerprint, "seed": self._options.seed, "samples": self._consumed}

    def load_state_dict(self, state: dict[str, str | int]) -> None:
        """Resume from another stream's `state_dict`, whatever its world size, batch size or workers were.

        Raises:
            DataError: the state is of other data.
            UsageError: the state is of another seed, or no state; or the stream is closed.
        """
        self._refuse_closed()
        try:
            taken_of, seed, samples = state["fingerprint"], state["seed"], state["samples"]
        except (KeyError, TypeError, IndexError):
            raise UsageError(f"the state is {shown(state)}; give what Stream.state_dict() returned") from None
        seed, consumed = whole_number("the state's seed", seed), position("samples of the state", samples)
        if taken_of != self.manifest.fingerprint:
            raise DataError(
                f"{self.manifest.place} has fingerprint "
                f"{self.manifest.fingerprint}, the state was taken of data with fingerprint "
                f"{taken_of}; give the same data set, or start anew"
            )
        if seed != self._options.seed:
            raise UsageError(
                f"the state was taken with seed {seed}, this stream has seed {self._options.seed}; "
                "give the same seed, or start anew"
            )
        with self._taking:
            self._stop()
            self._consumed = consumed

    def close(self) -> None:
        """End the threads and close the shards; any thread may call this.

        The stream gives no batches afterwards, and a loop that waits for one ends.
        """
        self._closed = True
        self._stop()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another stream needs to go on from this one's place, with threads of its own."""
        ours = ("_loader", "_finalizer", "_taking")
        state = {name: value for name, value in vars(self).items() if name not in ours}
        return {**state, "_ledger": copy(self._ledger)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the place of a copied or unpickled stream."""
        vars(self).update(state)
        self._begin_anew()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the stream; the manifest, which nothing changes, is shared."""
        return copy(self)

    def _begin_anew(self) -> None:
        """Start without threads; the next batch is the one after `consumed`."""
        self._taking = RLock()  # of the one thread that takes a batch
        self._loader: Loader | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._forked = False
        _streams.add(self)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UsageError("the stream is closed; make another, with start_samples to go on")

    def _start(self) -> Loader:
        if self._process != os.getpid() and get_worker_info() is not None:
            raise UsageError(
                "a DataLoader's workers would each give all batches of this stream; it reads ahead in threads of "
                "its own: loop over it, or give num_workers=0"
            )
        if _running_at_fork:
            raise UsageError(
                "this process was forked while a stream was running, whose threads it does not have; "
                "start it with the method 'spawn', or before the first batch is taken"
            )
        if self._forked and self._options.device.type == "cuda" and torch.cuda._is_in_bad_fork():
            raise UsageError(
                f"a forked process cannot use {self._options.device}, which the process before it used; "
                "start it with the method 'spawn'"
            )
        if self._forked:  # the connections are the other process's
            self.manifest = self._ledger.manifest = self.manifest.reconnected()
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


_streams: "weakref.WeakSet[Stream]" = weakref.WeakSet()
_running_at_fork = False


def _after_fork() -> None:
    """Take the other process's threads, and the locks that they may have held, off the streams of this one."""
    global _running_at_fork
    for stream in list(_streams):
        _running_at_fork |= stream._loader is not None
        stream._begin_anew()
        stream._forked = True


os.register_at_fork(after_in_child=_after_fork)


def _hand_over(event: torch.cuda.Event, *tensors: Tensor | None) -> None:
    """Make the consumer's CUDA stream wait for a batch, and the allocator for the consumer."""
    for tensor in tensors:
        if tensor is not None:
            current = torch.cuda.current_stream(tensor.device)
            current.wait_event(event)
            tensor.record_stream(current)
