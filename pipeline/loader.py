"""Threads of a stream: one reads ahead, one decodes ahead, and the consumer takes batches that are ready.

    plan → read and check → [encoded batch] → decode → [ready batches] → consumer

An error in a thread is raised in the consumer, after the batches that came before it. No thread refers to the stream
that the user holds, so a forgotten stream is collected and its threads end.

Legend: b samples of this rank's part of a global batch.
"""

import atexit
import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from threading import Thread, current_thread
from typing import TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from coma.errors import DataError, UsageError
from coma.pipeline.ahead import FetchAhead, Upcoming
from coma.pipeline.arrays import NO_BYTES, ArrayDecoder, make_decoder
from coma.pipeline.cache import ShardCache
from coma.pipeline.channel import Channel
from coma.pipeline.crops import Crops, Flips, IntArray, center_crops, random_resized_crops
from coma.pipeline.decode import DecodeError, Decoder, Encoded
from coma.pipeline.faults import Substitution, candidates
from coma.pipeline.order import Int64Array, Planner, Step, rank_slice
from coma.pipeline.plain import flag, shown, whole_number
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.pipeline.reader import Bytes, SampleReader, Unreadable
from coma.pipeline.sizes import CropSizes
from coma.pipeline.squares import turned
from coma.pipeline.views import partition_units
from coma.shards.files import without_credentials
from coma.shards.manifest import Manifest

log = logging.getLogger(__name__)

T = TypeVar("T")
_JOIN_S = 10.0
_BLANK = np.frombuffer(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000"
        "000c4944415478da63606060000000040001c8eaebf90000000049454e44ae426082"
    ),
    np.uint8,
)
"""PNG of one black pixel, in the place of a damaged sample that is marked."""


@dataclass(frozen=True)
class LoaderOptions:
    """Options of a loader; UsageError if they do not fit each other."""

    batch_size: int  # global
    sizes: CropSizes
    views: int
    seed: int
    rank: int
    world_size: int
    device: torch.device
    training: bool
    crop_scale: tuple[float, float]
    flips: Flips
    quarter_turns: bool
    decode: str  # "cpu" or "gpu": where images are decoded; or "auto"
    workers: int  # decoder threads
    prefetch: int  # ready batches
    preprocessing: Preprocessing = DEFAULT
    mark_damaged: bool = False  # instead of showing others in the place of damaged samples
    windows: Crops | None = None  # [N] of a single pass, in place of centre crops

    def __post_init__(self) -> None:
        """Turn numpy's and torch's numbers into Python's and validate the options; raise UsageError."""
        for name in ("batch_size", "views", "seed", "rank", "world_size", "workers", "prefetch"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        for name in ("training", "quarter_turns"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        object.__setattr__(self, "decode", str(self.decode))
        try:
            low, high = map(float, self.crop_scale)
        except (TypeError, ValueError):
            raise UsageError(f"crop_scale is {shown(self.crop_scale)}; give two numbers, like (0.2, 1)") from None
        object.__setattr__(self, "crop_scale", (low, high))
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank {self.rank} is not one of the {self.world_size} ranks from 0 on")
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise UsageError(
                f"a global batch of {self.batch_size} cannot be shared by {self.world_size} processes; "
                f"give a multiple of {self.world_size}"
            )
        units = self.sizes.units(self.sizes.first)
        if not 1 <= self.views <= units:
            raise UsageError(f"{self.views} views of {units} mask units; give 1 to {units} views")
        if not 0 < low <= high <= 1:
            raise UsageError(f"crop scale {low} to {high} is no part of an image; keep 0 < low <= high <= 1")
        if self.flips not in get_args(Flips):
            raise UsageError(f"flips is {shown(self.flips)}; it must be horizontal, none or both")
        if self.decode not in ("auto", "cpu", "gpu"):
            raise UsageError(f"decode is {self.decode!r}; it must be auto, cpu or gpu")
        if self.decode == "gpu" and self.device.type == "cpu":
            raise UsageError("decode is 'gpu', and the batches go to a CPU; take 'cpu' or 'auto'")
        if self.workers < 1 or self.prefetch < 1:
            raise UsageError(f"{self.workers} workers and {self.prefetch} batches ahead; give 1 or more")
        if self.windows is not None and self.training:
            raise UsageError("windows are given for a training stream, which draws its crops; give training=False")

    @property
    def decode_on_gpu(self) -> bool:
        """Whether images are decoded where they end up, on a GPU."""
        return self.decode == "gpu" or (self.decode == "auto" and self.device.type == "cuda")

    @property
    def rank_batch_size(self) -> int:
        """Samples in a rank's part of a global batch."""
        return self.batch_size // self.world_size


@dataclass(frozen=True, eq=False)
class Ready:
    """A batch of b samples on the device."""

    images: Tensor  # [b, C, H, W]
    units: Tensor  # [b, U]
    labels: Tensor | None  # [b]
    samples: Tensor  # [b]
    stop_sample: int  # samples consumed by all ranks together after this batch
    substitutions: tuple[Substitution, ...]
    event: "torch.cuda.Event | None"  # recorded when the batch is complete on the device


@dataclass(frozen=True, eq=False)
class _Fetched:
    """The encoded images of a batch of b samples."""

    step: Step
    samples: Int64Array  # [b] asked for
    epochs: Int64Array  # [b]
    shown: Int64Array  # [b] asked for, or their substitutes
    encoded: Encoded  # [b]
    substitutions: dict[int, Substitution]  # by position in the batch


class Loader:
    """Preparation of batches from `start_sample` on, ahead of the consumer."""

    def __init__(self, manifest: Manifest, planner: Planner, options: LoaderOptions, start_sample: int) -> None:
        self._manifest = manifest
        self._planner = planner
        self._options = options
        self._fetched: Channel[_Fetched] = Channel(1)
        self._ready: Channel[Ready] = Channel(options.prefetch)
        self._closing = False
        self._process = os.getpid()
        self._cache = ShardCache(manifest) if manifest.is_remote else None
        self._ahead = (
            None
            if self._cache is None
            else FetchAhead(self._cache, Upcoming(planner, manifest, start_sample), start_sample)
        )
        self._threads = [
            Thread(target=self._read_ahead, args=(start_sample,), name="coma-read", daemon=True),
            Thread(target=self._decode_ahead, name="coma-decode", daemon=True),
        ]
        # Last registered, first run: the threads end before DALI, imported earlier, takes its pipelines down.
        atexit.register(self.close)
        for thread in self._threads:
            thread.start()

    def get(self) -> Ready | None:
        """Wait for the next batch; None at the end of a single pass. Errors of the threads are raised here."""
        return self._ready.get()

    def close(self) -> None:
        """End all threads, after the read or the batch under way at most."""
        if self._process != os.getpid():  # forked: the threads are the parent's, and its locks stay taken
            return
        self._closing = True
        self._fetched.close()
        self._ready.close()
        if self._ahead is not None:
            self._ahead.close()
        atexit.unregister(self.close)
        for thread in self._threads:
            if thread is current_thread():  # the garbage collector may call from anywhere
                continue
            thread.join(_JOIN_S)
            if thread.is_alive():
                log.warning("thread %s still waits for the system after %.0f s", thread.name, _JOIN_S)

    # The reading thread

    def _read_ahead(self, start_sample: int) -> None:
        part = rank_slice(self._options.batch_size, self._options.rank, self._options.world_size)
        position = start_sample
        try:
            with closing(SampleReader(self._manifest, self._options.rank_batch_size, self._cache)) as reader:
                while not self._closing and (step := self._planner.at(position)) is not None:
                    if self._ahead is not None:
                        self._ahead.advance(position)
                    samples, epochs = step.samples[part], step.epochs[part]
                    if len(samples):  # the last batch of a single pass may leave nothing to this rank
                        self._fetched.put(self._fetch(reader, step, samples, epochs))
                    position = step.stop_sample
            self._fetched.finish()
        except BaseException as error:
            self._fetched.finish(error)

    def _fetch(self, reader: SampleReader, step: Step, samples: Int64Array, epochs: Int64Array) -> _Fetched:
        shown, data, substitutions = samples.copy(), list[Bytes](), dict[int, Substitution]()
        for position, image in enumerate(reader.read(samples)):
            if not isinstance(image, Unreadable):
                data.append(image)
                continue
            sample, epoch = int(samples[position]), int(epochs[position])
            if self._options.mark_damaged:
                substitutions[position] = Substitution(step.number, sample, sample, image.reason)
                data.append(_BLANK if self._manifest.pixels is None else NO_BYTES)
                continue
            substitutions[position], instead = self._substitute(step, sample, epoch, image.reason, reader.read_one)
            shown[position] = substitutions[position].substitute
            data.append(instead)
        side = self._options.sizes.at(step.stop_sample)
        crops = self._crops(samples, epochs, shown, side)
        for position in substitutions if self._options.mark_damaged else ():
            crops.start[position], crops.shape[position], crops.flip[position] = 0, 1, 0  # the blank's one pixel
        encoded = Encoded(data, crops, side)
        return _Fetched(step, samples, epochs, shown, encoded, substitutions)

    def _substitute(
        self, step: Step, sample: int, epoch: int, reason: str, attempt: Callable[[int], T | None]
    ) -> tuple[Substitution, T]:
        """The substitution by the first candidate for which `attempt` returns something, and what it returned."""
        for candidate in candidates(self._manifest, self._options.seed, epoch, sample):
            if (made := attempt(candidate)) is not None:
                return Substitution(step.number, sample, candidate, reason), made
        shard = self._manifest.shard_path(int(self._manifest.shard_id[sample]))
        raise DataError(
            f"shard {without_credentials(str(shard))}: {reason}; none of the samples tried in its place is good"
        )

    def _crops(self, samples: IntArray, epochs: IntArray, shown: Int64Array, side: int) -> Crops:
        """Crop windows in the images shown, with the randomness of the samples asked for."""
        width, height = self._manifest.width[shown], self._manifest.height[shown]
        if self._options.windows is not None:
            return self._options.windows[shown]
        if not self._options.training:
            like = self._options.preprocessing
            return center_crops(width, height, image_size=side, fraction=like.crop_fraction, squash=like.squash)
        return random_resized_crops(
            samples,
            epochs,
            width,
            height,
            seed=self._options.seed,
            scale=self._options.crop_scale,
            flips=self._options.flips,
            quarter_turns=self._options.quarter_turns,
        )

    # The decoding thread

    def _decode_ahead(self) -> None:
        under_way: deque[_Fetched] = deque()
        failures: list[BaseException] = []

        def source() -> Encoded | None:
            try:
                fetched = self._fetched.get()
            except BaseException as error:  # kept until the batches before it are out
                failures.append(error)
                return None
            if fetched is None:
                return None
            under_way.append(fetched)
            return fetched.encoded

        try:
            decoder = make_decoder(
                self._manifest.pixels,
                source,
                batch_size=self._options.rank_batch_size,
                device=self._options.device,
                decode_on_gpu=self._options.decode_on_gpu,
                threads=self._options.workers,
                depth=2,
                preprocessing=self._options.preprocessing,
            )
            with closing(decoder):
                while not self._closing:
                    try:
                        images = decoder.run()
                        if images is None:
                            break
                        fetched = under_way.popleft()
                    except DecodeError:
                        fetched, images = self._decode_singly(decoder, under_way.popleft())
                    if not self._ready.put(self._assemble(fetched, images, decoder.stream)):
                        return
            self._ready.finish(failures[0] if failures else None)
        except BaseException as error:
            self._ready.finish(error)

    def _decode_singly(self, decoder: Decoder | ArrayDecoder, fetched: _Fetched) -> tuple[_Fetched, Tensor]:
        """Decode a failed batch again, image by image, with substitutes for those that cannot be decoded."""
        side = fetched.encoded.side

        def attempt(position: int, sample: int) -> Tensor | None:
            """Decode a candidate, in a window drawn as for the sample asked for."""
            with closing(SampleReader(self._manifest, 1, self._cache)) as reader:
                data = reader.read_one(sample)
            at = slice(position, position + 1)
            shown = np.array([sample], np.int64)
            crop = self._crops(fetched.samples[at], fetched.epochs[at], shown, side)
            try:
                return None if data is None else decoder.decode_one(data, crop, side)
            except DecodeError:
                return None

        shown, substitutions = fetched.shown.copy(), dict(fetched.substitutions)
        images = list[Tensor]()
        for position, data in enumerate(fetched.encoded.data):
            sample = int(fetched.samples[position])
            try:
                crop = fetched.encoded.crops[position : position + 1]
                images.append(decoder.decode_one(data, crop, side))
            except DecodeError as error:
                if position in substitutions:
                    cause = substitutions[position].reason
                else:
                    cause = f"decoding failed: {error}"
                if self._options.mark_damaged:
                    substitutions[position] = Substitution(fetched.step.number, sample, sample, cause)
                    channels = self._options.preprocessing.channels
                    images.append(torch.zeros(1, channels, side, side, device=self._options.device))
                    continue
                substitutions[position], image = self._substitute(
                    fetched.step, sample, int(fetched.epochs[position]), cause, partial(attempt, position)
                )
                shown[position] = substitutions[position].substitute
                images.append(image)
        with torch.cuda.stream(decoder.stream):
            batch = torch.cat(images)
        return replace(fetched, shown=shown, substitutions=substitutions), batch

    def _assemble(self, fetched: _Fetched, images: Tensor, stream: "torch.cuda.Stream | None") -> Ready:
        manifest, device = self._manifest, self._options.device
        with torch.cuda.stream(stream):  # no effect on a CPU, where the stream is None
            images = turned(images, fetched.encoded.crops)
            samples = torch.from_numpy(fetched.samples).to(device)
            epochs = torch.from_numpy(fetched.epochs).to(device)
            in_all = self._options.sizes.units(fetched.encoded.side)
            units = partition_units(samples, epochs, seed=self._options.seed, units=in_all)
            labels = None
            if manifest.label is not None:
                labels = torch.from_numpy(manifest.label[fetched.shown].astype(np.int64)).to(device)
            event = None if stream is None else stream.record_event()  # type: ignore[no-untyped-call]
        stop = fetched.step.stop_sample
        substitutions = tuple(fetched.substitutions.values())
        return Ready(images, units, labels, samples, stop, substitutions, event)
