"""Segmentation masks of samples: read from the shards, decoded to class ids, and cut as evaluation cuts their images.

A training stream does not read masks; who needs them asks a `MaskReader`.

Legend: n samples, H, W sides of a mask, S side of a square.
"""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from coma.errors import DataError
from coma.pipeline.cache import ShardCache
from coma.pipeline.crops import Crops, center_crops
from coma.pipeline.preprocessing import EVAL_FRACTION
from coma.pipeline.reader import ShardReader, Unreadable
from coma.shards.files import without_credentials
from coma.shards.images.formats import BadImageError
from coma.shards.images.masks import decode_mask
from coma.shards.images.options import MOST_PIXELS
from coma.shards.manifest import Manifest

ClassIds = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


class MaskReader:
    """Reader of the masks of a split, local or remote; not thread-safe.

    Args:
        manifest: the split.
        cache: of a remote split; by default one in the default folder.

    Raises:
        DataError: the split has no masks.
    """

    def __init__(self, manifest: Manifest, cache: ShardCache | None = None) -> None:
        coding, offset, size, xxh3_64 = (
            *(manifest.mask_coding, manifest.mask_offset),
            *(manifest.mask_size, manifest.mask_xxh3_64),
        )
        if coding is None or offset is None or size is None or xxh3_64 is None:
            raise DataError(
                f"{without_credentials(str(manifest.folder))} has no masks; shard images with masks beside them, such "
                "as images/ and masks/"
            )
        self._manifest = manifest
        self._coding = coding
        self._reader = ShardReader(replace(manifest, offset=offset, size=size, xxh3_64=xxh3_64), cache=cache)

    def read(self, samples: Sequence[int] | Int64Array) -> list[ClassIds]:
        """Read the masks of these samples, in the order asked for.

        Returns:
            [H, W] uint8 for each: class ids, the manifest's `mask_ignore` (255) where there is no class. H and W are
            those of the image as it is displayed.

        Raises:
            DataError: a shard is missing or too short, or a mask is not what it was.
        """
        masks = []
        for sample, data in zip(samples, self._reader.read(samples), strict=True):
            if isinstance(data, Unreadable):
                raise self._damaged(int(sample), data.reason)
            try:
                mask = decode_mask(data.tobytes(), self._coding, MOST_PIXELS)
            except BadImageError as error:
                raise self._damaged(int(sample), str(error)) from None
            size = (int(self._manifest.height[sample]), int(self._manifest.width[sample]))
            if mask.shape != size:
                raise self._damaged(int(sample), f"it is {mask.shape[1]}x{mask.shape[0]} pixels, not its image's size")
            masks.append(mask)
        return masks

    def read_center(self, samples: Sequence[int] | Int64Array, image_size: int) -> ClassIds:
        """Read masks cut as `Stream(training=False)` cuts their images.

        Args:
            samples: n samples.
            image_size: S, the side of the stream's images.

        Returns:
            [n, S, S] uint8.

        Raises:
            DataError: as `read`.
        """
        rows = np.asarray(samples, np.int64)
        crops = center_crops(
            self._manifest.width[rows], self._manifest.height[rows], image_size=image_size, fraction=EVAL_FRACTION
        )
        squares = np.empty((len(rows), image_size, image_size), np.uint8)
        for at, row in enumerate(rows):  # one by one: whole masks may be large
            squares[at] = cut(self.read([int(row)]), crops[at : at + 1], image_size)[0]
        return squares

    def close(self) -> None:
        """Close all open shards."""
        self._reader.close()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all open shards."""
        self.close()

    def _damaged(self, sample: int, reason: str) -> DataError:
        (key,), shard = self._manifest.keys([sample]), self._manifest.shards[self._manifest.shard_id[sample]]
        place = without_credentials(str(self._manifest.folder / shard))
        return DataError(f"the mask of sample {key} in {place} is damaged: {reason}; copy the shard again")


def cut(masks: Sequence[ClassIds], crops: Crops, side: int) -> ClassIds:
    """Cut windows out of masks and resize them to squares by nearest neighbours, mirrored where the crop says so.

    A pixel of a square takes the value at its centre, as the antialiased resizing of images is centred on it too.

    Args:
        masks: n of [H, W].
        crops: n windows.
        side: S.

    Returns:
        [n, S, S].
    """
    squares = np.empty((len(masks), side, side), np.uint8)
    for at, mask in enumerate(masks):
        (top, left), (height, width) = crops.start[at].tolist(), crops.shape[at].tolist()
        rows, columns = top + nearest(height, side), left + nearest(width, side)
        square = mask[rows[:, None], columns[None, :]]
        squares[at] = square[:, ::-1] if crops.flip[at] else square
    return squares


def nearest(length: int, side: int) -> Int64Array:
    """Return, for `side` pixels that cover `length` pixels, which of these lies at the centre of each: [side]."""
    return (2 * np.arange(side, dtype=np.int64) + 1) * length // (2 * side)
