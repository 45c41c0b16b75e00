"""Layout of the shards: which image goes into which shard.

It depends on the list of images, the seed and the sizes asked for, and on nothing else.
Legend: n images of one split.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import UsageError
from coma.shards.sources.listing import SourceListing
from coma.shards.splitmix64 import GOLDEN, mix
from coma.shards.tar import BLOCK_BYTES
from coma.shards.write.options import ShardOptions

log = logging.getLogger(__name__)

_SHARD_BYTES = 256 * 2**20
_FEW_SHARDS = 16
_SMALL_SHARD_BYTES = 2**20
_MAX_SHARDS = 1_000_000  # six digits
_SIDE_FILES_BYTES = 4 * BLOCK_BYTES  # .cls and .json, each a header and a block
_RESIZED_BYTES_PER_PIXEL = 0.35  # photographs at quality 90


@dataclass(frozen=True)
class ShardLayout:
    """One shard: the images at positions [start, stop) of its split's shuffled list."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File name without extension."""
        return f"coma-{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class SplitLayout:
    """One split: its images in shuffled order, cut into shards."""

    name: str
    source_split: int
    """Index of the source's split that the images are taken from."""
    order: npt.NDArray[np.int64]
    """[n] numbers of the images in the source's split."""
    shards: list[ShardLayout]
    tar_bytes: int
    """Estimated size of all its tars."""


def lay_out(source: Path, listing: SourceListing, options: ShardOptions) -> list[SplitLayout]:
    """Shuffle the splits of a source and cut them into shards; hold out images as `val` if that is asked for.

    Raises UsageError, which names `source`, for a `val_fraction` that does not fit and for too many shards.
    """
    if options.val_fraction:
        names = {split.name for split in listing.splits}
        if names >= {"train", "val"}:
            raise UsageError(f"--val-fraction {options.val_fraction}: {source} has validation images already")
        if names.isdisjoint({"train", "val"}):
            raise UsageError(f"--val-fraction {options.val_fraction}: {source} has no training images")
    orders: list[tuple[str, int, npt.NDArray[np.int64]]] = []
    for number, split in enumerate(listing.splits):
        order = shuffled_order(len(split), options.seed, split.name)
        group_of = split.group_of
        images = order if group_of is None else shuffled_order(int(group_of.max()) + 1, options.seed, split.name)
        held_out = round(options.val_fraction * len(images)) if split.name == "train" else 0
        if split.name == "train" and options.val_fraction and not 0 < held_out < len(images):
            raise UsageError(f"--val-fraction {options.val_fraction} of {len(images)} leaves a split empty")
        if not held_out:
            orders.append((split.name, number, order))
            continue
        log.info("holding out %s%s as split val", f"{held_out:,}", " of them" if group_of is None else " of the images")
        if group_of is None:
            orders += [(split.name, number, order[held_out:]), ("val", number, order[:held_out])]
            continue
        in_val = np.isin(group_of[order], images[:held_out])  # an image's tiles stay together
        orders += [(split.name, number, order[~in_val]), ("val", number, order[in_val])]
    splits = []
    for name, number, order in orders:
        sizes, masks = listing.splits[number].sizes[order], listing.splits[number].masks
        shards, tar_bytes = cut_into_shards(
            sizes, name, options.shard_bytes, options.resize_px, None if masks is None else masks.sizes[order]
        )
        splits.append(SplitLayout(name, number, order, shards, tar_bytes))
    most = max(len(split.shards) for split in splits)
    if most > _MAX_SHARDS:
        raise UsageError(
            f"--shard-bytes {options.shard_bytes} makes {most} shards, more than {_MAX_SHARDS}; give a larger size"
        )
    return splits


def shuffled_order(count: int, seed: int, split: str) -> npt.NDArray[np.int64]:
    """Return a permutation [n] of the images of a split, the same on every machine and with every numpy.

    Images are ranked by SplitMix64 of their number, keyed by seed and split.
    """
    key = np.uint64(xxhash.xxh3_64_intdigest(f"{seed}/{split}".encode()))
    state = key + np.uint64(GOLDEN) * np.arange(1, count + 1, dtype=np.uint64)  # modulo 2^64
    return np.argsort(mix(state), kind="stable")


def cut_into_shards(
    sizes: npt.NDArray[np.int64],
    split: str,
    shard_bytes: int | None,
    resize_px: int | None = None,
    mask_sizes: npt.NDArray[np.int64] | None = None,
) -> tuple[list[ShardLayout], int]:
    """Cut a shuffled list of images, `sizes` [n] in source bytes, into shards of equal size.

    The shards are the fewest that keep each at about `shard_bytes`. None means 256 MiB, but at least 16 shards if
    those have 1 MiB each, because few samples, too, are to be shared among processes. With `resize_px` the size of
    an image after re-encoding is estimated (it must not depend on the pixels, as no file has been read yet).
    `mask_sizes` [n] are the bytes of the images' masks.
    Returns the shards, and the estimated bytes of all their tars.
    """
    image_bytes = np.maximum(sizes, 0)
    if resize_px is not None:
        image_bytes = np.minimum(image_bytes, round(resize_px * resize_px * 4 / 3 * _RESIZED_BYTES_PER_PIXEL))
    blocks = -(-image_bytes // BLOCK_BYTES) + 1
    if mask_sizes is not None:
        blocks += -(-np.maximum(mask_sizes, 0) // BLOCK_BYTES) + 1
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
    layouts = [
        ShardLayout(split, number, int(start), int(stop))
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]
    return layouts, total
