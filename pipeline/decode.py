"""Decoding of encoded images to normalised tensors with DALI, on a CPU or on a GPU.

DALI's graph decodes no more of an image than the window it shows (`image_slice`). On a GPU the JPEGs are decoded
there (`mixed`), on the hardware engine where there is one, and the graph resizes, mirrors and normalises as well:
nothing comes back to the host. On a CPU the graph ends with the windows, and `squares` does the rest, since torch
resizes several times as fast there. For a trainer on a GPU whose host decodes, uint8 goes to the device. The side of a
batch goes through the graph with it, so that batches under way may differ in size.

Resizing is linear with antialiasing, as torchvision's default is, unless a network wants it cubic.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from coma.errors import ComaError, UsageError
from coma.installed.cuda import without_dali
from coma.pipeline.crops import Crops, IntArray
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.pipeline.squares import Squares, normalise

try:
    import nvidia.dali as dali
    import nvidia.dali.fn as fn
    from nvidia import nvimgcodec
    from nvidia.dali import Pipeline, types
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "nvidia":
        raise
    raise UsageError(without_dali()) from error

DALI_VERSION: str = dali.__version__
"""Asked of the module, whose distribution is called by its CUDA."""

HW_DECODER_LOAD = 0.65
"""DALI's own default; the best value depends on GPU and images (`python -m benchmarks.gpu decode`)."""

_FILTERS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}

# The threads of a pipeline do not come along into a forked process: DALI's clean-up at its exit would raise.
os.register_at_fork(after_in_child=lambda: getattr(Pipeline, "_pipes", set()).clear())


_GPU_FAULT = re.compile(
    r"out of memory|bad_alloc|allocat|\bcuda\w*error|cuda_error|cuda (driver|runtime)", re.IGNORECASE
)
"""What DALI reports where the GPU failed, and not the image."""


class DecodeError(Exception):
    """A batch, or the image given to `decode_one`, could not be decoded."""


class _OutOfStep(Exception):
    """The graph asked for a batch out of order, which is a bug and not a fault of the data."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """The graph's input for a batch of n images."""

    data: Sequence[npt.NDArray[np.uint8]]  # n files, each [bytes]
    crops: Crops  # [n]
    side: int  # pixels, of the square results


class Decoder:
    """Runs the graph over the batches that `source` gives, in order.

    Args:
        source: called for each batch, up to `depth` batches ahead of the one that `run` returns; None ends the run.
        batch_size: number of images in a batch, at most.
        device: where the images end up.
        decode_on_gpu: whether they are decoded there, if it is a GPU.
        threads: CPU threads.
        depth: batches in the graph at the same time.
        hw_decoder_load: part of a batch, 0 to 1, that a GPU's JPEG engine decodes, if it has one; the rest is for its
            other cores.
        preprocessing: filter of resizing, mean and deviation.
    """

    def __init__(
        self,
        source: Callable[[], Encoded | None],
        *,
        batch_size: int,
        device: torch.device,
        decode_on_gpu: bool,
        threads: int,
        depth: int,
        hw_decoder_load: float = HW_DECODER_LOAD,
        preprocessing: Preprocessing = DEFAULT,
    ) -> None:
        self._preprocessing = preprocessing
        self._device = device
        self._hw_decoder_load = hw_decoder_load
        self._on_gpu = decode_on_gpu
        self._threads = threads
        self._squares: Squares | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._batches = self._build(source, batch_size, threads, depth)
        self._single: Pipeline | None = None
        self._single_input: list[Encoded] = []

    def run(self) -> Tensor | None:
        """The next batch, [n, 3, side, side] float32 on the device in channels-last order, or None after the last.

        The tensor is the caller's: no later run writes into it. On a GPU it is ready in the order of
        `stream`.

        Raises:
            DecodeError: an image of this batch cannot be decoded. The next call goes on with the next batch.
            ComaError: the GPU is out of memory, or failed.
        """
        return self._run(self._batches)

    def decode_one(self, data: npt.NDArray[np.uint8], crop: Crops, side: int) -> Tensor:
        """Decode one image, [1, 3, side, side], with the same graph, apart from the batches under way.

        Raises:
            DecodeError: the image cannot be decoded.
        """
        if self._single is None:
            self._single = self._build(lambda: self._single_input.pop(), 1, threads=1, depth=1)
        self._single_input[:] = [Encoded([data], crop, side)]
        image = self._run(self._single)
        assert image is not None
        return image

    def close(self) -> None:
        """End the resizing threads; those of the graph end with it."""
        if self._squares is not None:
            self._squares.close()

    @property
    def stream(self) -> "torch.cuda.Stream | None":
        """The CUDA stream on which batches are made; None on a CPU."""
        return self._stream

    def _run(self, pipeline: Pipeline) -> Tensor | None:
        try:
            images, mirrored, sides = pipeline.run(self._stream if self._on_gpu else None)
        except StopIteration:
            return None
        except _OutOfStep:
            raise
        except Exception as error:  # DALI raises RuntimeError, ValueError, IndexError, by what went wrong
            raise _fault(str(error), on_gpu=self._on_gpu) from error
        if not self._on_gpu:
            windows, flips = [from_dlpack(window) for window in images], np.asarray(mirrored.as_tensor())
            squares = self._squares_of(int(np.asarray(sides.as_tensor())[0, 0]))
            if self._stream is None:
                return squares.normalised(windows, flips)
            raw = squares.raw(windows, flips)
            with torch.cuda.stream(self._stream):
                return normalise(raw.to(self._device, non_blocking=True), self._preprocessing)
        with torch.cuda.stream(self._stream):
            # A copy within the device (microseconds), so that torch's allocator owns the memory and knows its
            # streams.
            return from_dlpack(images.as_tensor()).clone().permute(0, 3, 1, 2)

    def _squares_of(self, side: int) -> Squares:
        """The resizer of this side, kept from the last batch if that had the same."""
        if self._squares is None or self._squares.side != side:
            self.close()
            self._squares = Squares(side, self._threads, self._preprocessing)
        return self._squares

    def _build(self, source: Callable[[], Encoded | None], batch_size: int, threads: int, depth: int) -> Pipeline:
        """Build the graph, whose outputs are images, flags of those to mirror, and their sides."""
        fed, like = 0, self._preprocessing

        def feed(index: int) -> tuple[Any, ...]:
            nonlocal fed
            if index != fed:  # a graph that starts over would repeat data silently
                raise _OutOfStep(f"the decoder asked for batch {index}, expected {fed}")
            batch = source()
            if batch is None:
                raise StopIteration
            fed += 1
            sides = np.full((len(batch.data), 2), batch.side, np.float32)
            return list(batch.data), batch.crops.start, batch.crops.shape, batch.crops.flip, sides

        pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=self._device.index if self._on_gpu else None,
            prefetch_queue_depth=depth,
            seed=0,  # nothing in the graph is random
        )
        with pipeline:
            encoded, start, shape, mirrored, sides = fn.external_source(
                source=feed,
                num_outputs=5,
                batch=True,
                dtype=[types.UINT8, types.INT32, types.INT32, types.INT32, types.FLOAT],
                ndim=[1, 1, 1, 0, 1],
            )
            images = fn.decoders.image_slice(
                encoded,
                device="mixed" if self._on_gpu else "cpu",
                start=start,
                shape=shape,
                axes=[0, 1],  # rows, columns of the displayed image: EXIF orientation is applied before
                output_type=types.RGB,  # grey and CMYK are converted
                # Chroma is enlarged on a GPU as on a CPU. By default DALI repeats it there, which is coarser.
                jpeg_fancy_upsampling=True,
                hw_decoder_load=self._hw_decoder_load,  # means nothing on a CPU
            )
            if self._on_gpu:
                images = fn.resize(images, size=sides, interp_type=_FILTERS[like.interpolation], antialias=True)
                images = fn.crop_mirror_normalize(
                    images,
                    mirror=mirrored,
                    mean=[255 * value for value in like.mean],
                    std=[255 * value for value in like.std],
                    dtype=types.FLOAT,
                    output_layout="HWC",
                )
            pipeline.set_outputs(images, mirrored, sides)
        pipeline.build()
        return pipeline


class HeaderCheck:
    """Checks the headers of encoded images with DALI's own parsers before they are put into a batch.

    An image that fails while it is decoded costs its batch and no more. But one whose header cannot be
    parsed, or whose window lies outside of it, takes the whole process down (DALI 2.4 leaves the function
    while other threads still parse the rest of the batch into its variables). Such images are found here,
    for some 20 microseconds each.

    Args:
        batch_size: number of images checked at a time, at most.
    """

    def __init__(self, batch_size: int) -> None:
        self._input: list[Sequence[npt.NDArray[np.uint8]]] = []
        self._pipeline = Pipeline(batch_size=batch_size, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with self._pipeline:
            encoded = fn.external_source(source=lambda: self._input.pop(), batch=True, dtype=types.UINT8, ndim=1)
            self._pipeline.set_outputs(fn.peek_image_shape(encoded))
        self._pipeline.build()

    def faults(self, data: Sequence[npt.NDArray[np.uint8]], width: IntArray, height: IntArray) -> dict[int, str]:
        """Find those of n images that the graph cannot take.

        Args:
            data: n encoded images.
            width, height: [n] their displayed sizes, as the manifest has them.

        Returns:
            the reason for each of them, by position.
        """
        faults: dict[int, str] = {}
        for position, encoded in enumerate(data):
            try:
                _ = nvimgcodec.CodeStream(encoded).width  # the parser that `image_slice` uses
            except Exception as error:
                faults[position] = f"the header cannot be parsed ({_cause(str(error))})"
        parsed = [position for position in range(len(data)) if position not in faults]
        for position, displayed in zip(parsed, self._displayed([data[p] for p in parsed]), strict=True):
            expected = (int(height[position]), int(width[position]))
            if isinstance(displayed, str):
                faults[position] = f"the header cannot be parsed ({displayed})"
            elif displayed != expected:
                shape, manifest_shape = f"{displayed[1]}x{displayed[0]}", f"{expected[1]}x{expected[0]}"
                faults[position] = f"it is displayed {shape} pixels, not the manifest's {manifest_shape}"
        return faults

    def _displayed(self, data: Sequence[npt.NDArray[np.uint8]]) -> list[tuple[int, int] | str]:
        """Height and width after EXIF orientation of each image, or the reason why there are none."""
        if not data:
            return []
        self._input[:] = [data]
        try:
            (shapes,) = self._pipeline.run()
        except Exception as error:
            if len(data) == 1:
                return [_cause(str(error))]
            return [self._displayed([one])[0] for one in data]
        return [(int(height), int(width)) for height, width, _ in np.asarray(shapes.as_tensor())]


def _fault(report: str, *, on_gpu: bool) -> DecodeError | ComaError:
    """Return the error for DALI's report: the image's, or that of a GPU, where to skip the image would not help."""
    cause = _cause(report)
    if on_gpu and _GPU_FAULT.search(report.rpartition("encountered:")[2]):
        return ComaError(f"decoding on the GPU failed ({cause}): give a smaller --batch-size, or --decode cpu")
    return DecodeError(cause)


def _cause(report: str) -> str:
    """The line of DALI's report (operator, traceback, reason, advice) that gives the reason."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    reason = lines[lines.index("encountered:") + 1] if "encountered:" in lines[:-1] else " ".join(lines[:1])
    return reason.removesuffix(":").strip() or "unknown reason"
