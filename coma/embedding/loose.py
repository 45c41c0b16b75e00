"""Images that are not sharded, as the stream reads shards: checked as `coma shard` checks them, into one file a part.

Nothing of them stays: the file is removed when the part is done.

Legend: n images of a part, m of them good.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from coma.shards.images.prepare import BadImageError, PixelOptions, Prepared
from coma.shards.manifest import Manifest
from coma.shards.sources.listing import SourceImage
from coma.shards.sources.reader import SourceReader


@dataclass(frozen=True, eq=False)
class CheckedImages:
    """The good images of a part as a split of one shard, and the reasons for the others."""

    manifest: Manifest
    places: npt.NDArray[np.int64]
    """[m] place of each good image among the n, ascending."""
    damaged: dict[int, str]
    """Place of each other image, and the reason."""


def check_images(root: Path, images: Sequence[SourceImage], file: Path, threads: int) -> CheckedImages:
    """Read and check images, convert those that the stream would show wrongly, and write the good ones to `file`.

    Raises:
        ComaError: the source as a whole has gone.
        DataError: a tar was changed while it was read.
    """
    readers = _Readers(root)
    damaged: dict[int, str] = {}
    places, sizes, widths, heights, hashes = (list[int]() for _ in range(5))
    try:
        with ThreadPoolExecutor(threads, "coma-check") as pool, file.open("wb") as out:
            for place, prepared in enumerate(pool.map(readers.prepare, images)):
                if isinstance(prepared, str):
                    damaged[place] = prepared
                    continue
                out.write(prepared.data)
                places.append(place)
                sizes.append(len(prepared.data))
                widths.append(prepared.facts.width)
                heights.append(prepared.facts.height)
                hashes.append(xxhash.xxh3_64_intdigest(prepared.data))
    finally:
        readers.close()
    size = np.array(sizes, np.int64)
    manifest = Manifest(
        folder=file.parent,
        split="images",
        shards=(file.name,),
        shard_lengths=np.array([len(places)], np.int64),
        least_bytes=np.array([size.sum()], np.int64),
        shard_id=np.zeros(len(places), np.int32),
        offset=np.cumsum(size) - size,
        size=size,
        width=np.array(widths, np.int32),
        height=np.array(heights, np.int32),
        label=None,
        xxh3_64=np.array(hashes, np.uint64),
        class_names=None,
        fingerprint="0" * 16,
    )
    return CheckedImages(manifest, np.array(places, np.int64), damaged)


class _Readers:
    """A reader for each thread, as a reader's open files are its own."""

    def __init__(self, root: Path) -> None:
        self._root, self._own = root, threading.local()
        self._all: list[SourceReader] = []

    def prepare(self, image: SourceImage) -> Prepared | str:
        """Return the image as the stream can show it, or the reason why it is set aside."""
        try:
            reader: SourceReader = self._own.reader
        except AttributeError:
            reader = self._own.reader = SourceReader(self._root)
            self._all.append(reader)
        try:
            return reader.prepare(image, _PIXELS)
        except BadImageError as error:
            return str(error)

    def close(self) -> None:
        """Close what the readers have open."""
        for reader in self._all:
            reader.close()


_PIXELS = PixelOptions()
