"""Decoding of samples of any number of channels and of 8, 16 or 32 bits to normalised tensors, on a CPU.

The same interface as `decode.Decoder` has for 8-bit RGB, which DALI decodes. Here each thread reads the window of a
sample, clips, resizes and normalises it, all in float32: nothing is rounded to 8 bits.

Legend: n samples of a batch, h, w a window, S side of a square, C channels.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coma.errors import UsageError
from coma.pipeline.crops import Crops, IntArray
from coma.pipeline.decode import DecodeError, Decoder, Encoded, HeaderCheck
from coma.pipeline.preprocessing import Preprocessing
from coma.pipeline.resizing import resized_parts
from coma.shards.images.arrays import array_facts, read_window
from coma.shards.images.formats import BadImageError
from coma.shards.images.options import pixels_in_words
from coma.shards.manifest.pixel_coding import PixelCoding

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

NO_BYTES: Bytes = np.empty(0, np.uint8)
"""What stands for a sample that is damaged and marked: its image is all zeros."""


class ArrayDecoder:
    """Decodes the batches that `source` gives, in order.

    Args:
        source: called for each batch, up to `depth` batches ahead of the one that `run` returns; None ends the run.
        device: where the images end up.
        threads: samples decoded at a time.
        depth: batches decoded at the same time.
        preprocessing: clipping, mean, deviation, and filter of resizing.
    """

    def __init__(
        self,
        source: Callable[[], Encoded | None],
        *,
        device: torch.device,
        threads: int,
        depth: int,
        preprocessing: Preprocessing,
    ) -> None:
        self._source, self._device, self._depth = source, device, depth
        self._preprocessing = preprocessing
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = ThreadPoolExecutor(threads, "coma-arrays")
        self._under_way: deque[tuple[Tensor, list[Future[None]]]] = deque()
        self._ended = False
        self._mean, self._scale = np.array(preprocessing.mean), 1 / np.array(preprocessing.std)  # [C]
        self._mean, self._scale = self._mean * preprocessing.unit, self._scale / preprocessing.unit

    def run(self) -> Tensor | None:
        """The next batch, [n, C, side, side] float32 on the device in channels-last order, or None after the last.

        The tensor is the caller's: no later run writes into it. On a GPU it is ready in the order of `stream`.

        Raises:
            DecodeError: a sample of this batch cannot be decoded. The next call goes on with the next batch.
        """
        while not self._ended and len(self._under_way) < self._depth:
            batch = self._source()
            if batch is None:
                self._ended = True
            else:
                self._under_way.append(self._begin(batch))
        if not self._under_way:
            return None
        squares, parts = self._under_way.popleft()
        errors = [error for part in parts if (error := part.exception()) is not None]
        if errors:
            raise errors[0]
        return self._on_device(squares)

    def decode_one(self, data: Bytes, crop: Crops, side: int) -> Tensor:
        """Decode one sample, [1, C, side, side], apart from the batches under way.

        Raises:
            DecodeError: the sample cannot be decoded.
        """
        squares = self._empty(1, side)
        self._place(squares[0].numpy(), data, crop, 0)
        return self._on_device(squares)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def stream(self) -> "torch.cuda.Stream | None":
        """The CUDA stream on which batches are copied; None on a CPU."""
        return self._stream

    def _begin(self, batch: Encoded) -> tuple[Tensor, list[Future[None]]]:
        squares = self._empty(len(batch.data), batch.side)
        places = squares.numpy()
        parts = [
            self._pool.submit(self._place, places[at], data, batch.crops, at) for at, data in enumerate(batch.data)
        ]
        return squares, parts

    def _empty(self, count: int, side: int) -> Tensor:
        """Return memory for n squares, [n, S, S, C], pinned if they go to a GPU."""
        shape = (count, side, side, self._preprocessing.channels)
        return torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=self._stream is not None)

    def _on_device(self, squares: Tensor) -> Tensor:
        with torch.cuda.stream(self._stream):  # no effect on a CPU, where the stream is None
            return squares.to(self._device, non_blocking=True).permute(0, 3, 1, 2)

    def _place(self, square: FloatArray, data: Bytes, crops: Crops, at: int) -> None:
        """Make the square [S, S, C] of a sample. Raises DecodeError."""
        if not len(data):
            square[:] = 0
            return
        (top, left), (height, width) = crops.start[at].tolist(), crops.shape[at].tolist()
        try:
            window = read_window(_bytes(data), _format(data), top, left, height, width)
        except BadImageError as error:
            raise DecodeError(str(error)) from error
        side, channels = square.shape[1:]
        # Along an axis of C alone all this would be slow.
        values = square.reshape(side, side * channels)
        mean, scale = np.tile(self._mean.astype(np.float32), side), np.tile(self._scale.astype(np.float32), side)
        pixels, like = in_float32(window, self._preprocessing), self._preprocessing.interpolation
        for rows, part in resized_parts(pixels, side, like, mirrored=bool(crops.flip[at])):
            np.subtract(part.reshape(values[rows].shape), mean, out=values[rows])
            values[rows] *= scale


def in_float32(window: npt.NDArray[Any], preprocessing: Preprocessing) -> FloatArray:
    """Return a window [h, w, C] of any type in float32, clipped if that is asked for."""
    h, w, c = window.shape
    pixels: FloatArray = np.ascontiguousarray(window, np.float32)
    if preprocessing.low is None or preprocessing.high is None:
        return pixels
    low, high = (np.array(each, np.float32) * preprocessing.unit for each in (preprocessing.low, preprocessing.high))
    clipped: FloatArray = np.clip(pixels.reshape(h, w * c), np.tile(low, w), np.tile(high, w)).reshape(h, w, c)
    return clipped


class ArrayHeaderCheck:
    """Compares the headers of samples with the manifest before they are put into a batch.

    Args:
        pixels: what the manifest says of all samples.
    """

    def __init__(self, pixels: PixelCoding) -> None:
        self._pixels = pixels

    def faults(self, data: Sequence[Bytes], width: IntArray, height: IntArray) -> dict[int, str]:
        """Find those of n samples that are not what the manifest says.

        Args:
            data: n encoded samples.
            width, height: [n] their sizes, as the manifest has them.

        Returns:
            the reason for each of them, by position.
        """
        faults: dict[int, str] = {}
        wanted = self._pixels
        for position, encoded in enumerate(data):
            try:
                facts = array_facts(_bytes(encoded))
            except BadImageError as error:
                faults[position] = f"the header cannot be parsed ({error})"
                continue
            sides = (int(width[position]), int(height[position]))
            if (facts.width, facts.height) != sides:
                faults[position] = (
                    f"it has {facts.width}x{facts.height} pixels, not the manifest's {sides[0]}x{sides[1]}"
                )
            elif (facts.channels, facts.dtype) != (wanted.channels, wanted.dtype):
                pixels, manifest = (pixels_in_words(each.channels, str(each.dtype)) for each in (facts, wanted))
                faults[position] = f"it has {pixels}, not the manifest's {manifest}"
        return faults


def make_decoder(
    pixels: PixelCoding | None,
    source: Callable[[], Encoded | None],
    *,
    batch_size: int,
    device: torch.device,
    decode_on_gpu: bool,
    threads: int,
    depth: int,
    preprocessing: Preprocessing,
) -> Decoder | ArrayDecoder:
    """Make the decoder of a data set, whose manifest says of its values what `pixels` is: None for 8-bit RGB."""
    if pixels is not None:
        return ArrayDecoder(source, device=device, threads=threads, depth=depth, preprocessing=preprocessing)
    return Decoder(
        source,
        batch_size=batch_size,
        device=device,
        decode_on_gpu=decode_on_gpu,
        threads=threads,
        depth=depth,
        preprocessing=preprocessing,
    )


def make_header_check(pixels: PixelCoding | None, batch_size: int) -> HeaderCheck | ArrayHeaderCheck:
    """Make what checks headers before `make_decoder`'s decoder sees them."""
    return HeaderCheck(batch_size) if pixels is None else ArrayHeaderCheck(pixels)


def check_decode(pixels: PixelCoding | None, decode: str) -> None:
    """Refuse to decode on a GPU what is decoded on a CPU. Raises UsageError."""
    if pixels is not None and decode == "gpu":
        raise UsageError(
            f"decode is 'gpu', and {pixels_in_words(pixels.channels, pixels.dtype)} are decoded on the CPU: take "
            "'cpu' or 'auto'"
        )


def _bytes(data: Bytes) -> bytes:
    """Return the bytes under an array, without copying those of a whole file that was read."""
    whole: object = data.base
    return whole if isinstance(whole, bytes) and len(whole) == data.nbytes else data.tobytes()


def _format(data: Bytes) -> str:
    """Return the manifest's name of a sample's format, by its first bytes."""
    return {0x93: "npy", 0x89: "png"}.get(int(data[0]), "tiff")
