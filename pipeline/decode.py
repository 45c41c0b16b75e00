"""The one graph that turns encoded bytes into normalised images, on a CPU or on a GPU. The only user of DALI.

The graph reads only the window it shows (`image_slice`), resizes it to a square, mirrors and normalises it.
On a GPU the JPEGs are decoded there (`mixed`), on the hardware engine where there is one, and nothing comes
back to the host.

Resizing is linear with antialiasing. On photographs it is within 80 dB of PIL's antialiased bilinear, which
is torchvision's default; antialiased bicubic costs a quarter more of the whole graph's CPU time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import nvidia.dali.fn as fn
import torch
from nvidia import nvimgcodec
from nvidia.dali import Pipeline, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from coma.pipeline.crops import Crops, IntArray

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue, for values from 0 to 1."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue, for values from 0 to 1."""


class DecodeError(Exception):
    """A batch, or the image given to `decode_one`, could not be decoded."""


class _OutOfStep(Exception):
    """The graph asked for another batch than the next: a bug, never the data's fault."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the graph needs to make a batch. n images."""

    data: Sequence[npt.NDArray[np.uint8]]  # n files, each [bytes]
    crops: Crops  # [n]


class Decoder:
    """Runs the graph over the batches that `source` gives, in order.

    Args:
        source: called for each batch, up to `depth` batches ahead of the one that `run` returns; None ends
        the run. batch_size: the most images in a batch. image_size: side of the square result in pixels.
        device: where the images end up. threads: CPU threads of the graph. depth: batches in the graph at the
        same time.
    """

    def __init__(
        self,
        source: Callable[[], Encoded | None],
        *,
        batch_size: int,
        image_size: int,
        device: torch.device,
        threads: int,
        depth: int,
    ) -> None:
        self._image_size = image_size
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._batches = _build(source, batch_size, image_size, device, threads, depth)
        self._single: Pipeline | None = None
        self._single_input: list[Encoded] = []

    def run(self) -> Tensor | None:
        """The next batch, [n, 3, image_size, image_size] float32 on the device, or None after the last.

        The tensor is the caller's: no later run writes into it. On a GPU it is ready in the order of
        `stream`.

        Raises:
            DecodeError: if any image of this batch cannot be decoded. The next call goes on with the next
            batch.
        """
        return self._run(self._batches)

    def decode_one(self, data: npt.NDArray[np.uint8], crop: Crops) -> Tensor:
        """One image through the same graph, [1, 3, image_size, image_size], apart from the batches under way.

        Raises:
            DecodeError: if it cannot be decoded.
        """
        if self._single is None:
            self._single = _build(
                lambda: self._single_input.pop(), 1, self._image_size, self._device, threads=1, depth=1
            )
        self._single_input[:] = [Encoded([data], crop)]
        image = self._run(self._single)
        assert image is not None
        return image

    @property
    def stream(self) -> "torch.cuda.Stream | None":
        """The CUDA stream that batches are made on, None on a CPU."""
        return self._stream

    def _run(self, pipeline: Pipeline) -> Tensor | None:
        try:
            (images,) = pipeline.run(self._stream)
        except StopIteration:
            return None
        except _OutOfStep:
            raise
        except Exception as error:  # DALI raises RuntimeError, ValueError, IndexError, by what went wrong
            raise DecodeError(_cause(str(error))) from error
        if self._stream is None:
            # The dynamic executor gives each batch memory of its own, which lives as long as the tensor does.
            return from_dlpack(images.as_tensor())
        with torch.cuda.stream(self._stream):
            # A copy within the device (microseconds), so that torch's allocator owns the memory and knows its
            # streams.
            return from_dlpack(images.as_tensor()).clone()


class HeaderCheck:
    """Asks DALI's own parsers about encoded images before they are put into a batch.

    An image that fails while it is decoded costs its batch and no more. But one whose header cannot be
    parsed, or whose window lies outside of it, takes the whole process down (DALI 2.4 leaves the function
    while other threads still parse the rest of the batch into its variables). Such images are found here,
    for some 20 microseconds each.

    Args:
        batch_size: the most images asked about at a time.
    """

    def __init__(self, batch_size: int) -> None:
        self._input: list[Sequence[npt.NDArray[np.uint8]]] = []
        self._pipeline = Pipeline(
            batch_size=batch_size, num_threads=1, device_id=None, prefetch_queue_depth=1
        )
        with self._pipeline:
            encoded = fn.external_source(
                source=lambda: self._input.pop(), batch=True, dtype=types.UINT8, ndim=1
            )
            self._pipeline.set_outputs(fn.peek_image_shape(encoded))
        self._pipeline.build()

    def faults(
        self, data: Sequence[npt.NDArray[np.uint8]], width: IntArray, height: IntArray
    ) -> dict[int, str]:
        """Which of n images the graph cannot take, and why.

        Args:
            data: n encoded images.
            width, height: [n] their displayed sizes, as the manifest has them.

        Returns:
            reasons by position; empty if all is well.
        """
        faults: dict[int, str] = {}
        for position, encoded in enumerate(data):
            try:
                _ = nvimgcodec.CodeStream(encoded).width  # the parser that `image_slice` uses
            except Exception as error:
                faults[position] = f"the header cannot be parsed ({_cause(str(error))})"
        parsed = [position for position in range(len(data)) if position not in faults]
        for position, found in zip(parsed, self._displayed([data[p] for p in parsed]), strict=True):
            expected = (int(height[position]), int(width[position]))
            if isinstance(found, str):
                faults[position] = f"the header cannot be parsed ({found})"
            elif found != expected:
                shape, manifest_shape = f"{found[1]}x{found[0]}", f"{expected[1]}x{expected[0]}"
                faults[position] = f"it is displayed {shape} pixels, not the manifest's {manifest_shape}"
        return faults

    def _displayed(self, data: Sequence[npt.NDArray[np.uint8]]) -> list[tuple[int, int] | str]:
        """Height and width after EXIF orientation, or why there are none."""
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


def _build(
    source: Callable[[], Encoded | None],
    batch_size: int,
    image_size: int,
    device: torch.device,
    threads: int,
    depth: int,
) -> Pipeline:
    on_gpu = device.type == "cuda"
    fed = 0

    def feed(index: int) -> tuple[Any, ...]:
        nonlocal fed
        if index != fed:  # a graph that starts over would repeat data without a word
            raise _OutOfStep(f"the decoder asked for batch {index}, expected {fed}")
        batch = source()
        if batch is None:
            raise StopIteration
        fed += 1
        return list(batch.data), batch.crops.start, batch.crops.shape, batch.crops.flip

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device.index if on_gpu else None,
        prefetch_queue_depth=depth,
        seed=0,  # nothing in the graph is random
    )
    with pipeline:
        encoded, start, shape, flip = fn.external_source(
            source=feed,
            num_outputs=4,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.INT32, types.INT32],
            ndim=[1, 1, 1, 0],
        )
        images = fn.decoders.image_slice(
            encoded,
            device="mixed" if on_gpu else "cpu",
            start=start,
            shape=shape,
            axes=[0, 1],  # rows, columns of the displayed image: EXIF orientation is applied before
            output_type=types.RGB,  # grey and CMYK are converted
        )
        size = [image_size, image_size]
        images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images,
            mirror=flip,
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            dtype=types.FLOAT,
            output_layout="CHW",
        )
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def _cause(report: str) -> str:
    """The one line of DALI's report (operator, traceback, reason, advice) that says what was wrong."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    reason = lines[lines.index("encountered:") + 1] if "encountered:" in lines[:-1] else " ".join(lines[:1])
    return reason.removesuffix(":").strip() or "unknown reason"
