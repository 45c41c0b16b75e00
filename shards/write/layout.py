"""Which image goes where: a pure function of the file list, the seed and the sizes asked for.

Legend: n images of one split.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from coma.shards.splitmix64 import GOLDEN, mix
from coma.shards.tar import BLOCK_BYTES

_SHARD_BYTES = 256 * 2**20
_FEW_SHARDS = 16
_SMALL_SHARD_BYTES = 2**20
_SIDE_FILES_BYTES = 4 * BLOCK_BYTES  # .cls and .json, each a header and a block
_RESIZED_BYTES_PER_PIXEL = 0.35  # photographs at quality 90


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: the images at positions [start, stop) of its split's shuffled list."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File name without extension."""
        return f"coma-{self.split}-{self.number:06d}"


def shuffled(count: int, seed: int, split: str) -> npt.NDArray[np.int64]:
    """Return a permutation [n] of the images of a split, the same on every machine and with every numpy.

    Images are ranked by SplitMix64 of their number, keyed by seed and split.
    """
    key = np.uint64(xxhash.xxh3_64_intdigest(f"{seed}/{split}".encode()))
    state = key + np.uint64(GOLDEN) * np.arange(1, count + 1, dtype=np.uint64)  # modulo 2^64
    return np.argsort(mix(state), kind="stable")


def cut(
    sizes: npt.NDArray[np.int64], split: str, shard_bytes: int | None, resize_px: int | None = None
) -> tuple[list[ShardPlan], int]:
    """Cut a shuffled list of images, `sizes` [n] in source bytes, into shards of equal size.

    There are as few shards as keep each at about `shard_bytes`. None means 256 MiB, but at least 16 shards if
    those have 1 MiB each: few samples, too, are to be shared out among processes. With `resize_px` the size of
    an image after re-encoding is guessed (it must not depend on the pixels: the plan comes before the first
    file is read). Returns the shards, and the bytes of all their tars, about.
    """
    image_bytes = np.maximum(sizes, 0)
    if resize_px is not None:
        image_bytes = np.minimum(image_bytes, round(resize_px * resize_px * 4 / 3 * _RESIZED_BYTES_PER_PIXEL))
    blocks = -(-image_bytes // BLOCK_BYTES) + 1
    end = np.cumsum(blocks * BLOCK_BYTES + _SIDE_FILES_BYTES)  # [n] bytes up to and with image i
    total = int(end[-1])
    if shard_bytes is None:
        shards = max(-(-total // _SHARD_BYTES), min(_FEW_SHARDS, total // _SMALL_SHARD_BYTES), 1)
    else:
        shards = -(-total // shard_bytes)
    targets = total * np.arange(1, shards) // shards if shards <= len(sizes) else end[:-1]
    stops = np.unique(np.append(np.searchsorted(end, targets, side="right"), len(sizes)))
    stops = stops[stops > 0]
    starts = np.concatenate([[0], stops[:-1]])
    plans = [
        ShardPlan(split, number, int(start), int(stop))
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]
    return plans, total
