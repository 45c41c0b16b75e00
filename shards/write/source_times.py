"""Times of change of a source's files, so that images which were rewritten at the same size are noticed.

They are kept beside the data set, in OUT/.coma-sources.json, and not in `_info.json` or the record of a run: a copy
of a source has other times and the same images, of which the same data set is made, and on which a run is resumed.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import ComaError
from coma.shards.files import store_errors_as_oserror, write_atomically
from coma.shards.sources.listing import SourceListing, SplitListing

TIMES_NAME = ".coma-sources.json"


@dataclass(frozen=True)
class SourceTimes:
    """Times of change of all files of a source."""

    digest: str
    """Hash of every image's time, in the order of the listing."""
    newest_ns: int


def source_times(listing: SourceListing) -> SourceTimes:
    """Return the times of a source as it was listed."""
    digest = xxhash.xxh3_128()
    for split in listing.splits:
        digest.update(split.mtimes_ns.tobytes())
        if split.masks is not None:
            digest.update(split.masks.mtimes_ns.tobytes())
    return SourceTimes(digest.hexdigest(), max(int(_newest_ns(split).max(initial=0)) for split in listing.splits))


def _newest_ns(split: SplitListing) -> npt.NDArray[np.int64]:
    """Return [n] the time of each image, or of its mask if that is newer."""
    return split.mtimes_ns if split.masks is None else np.maximum(split.mtimes_ns, split.masks.mtimes_ns)


def changed_since(out: Path, listing: SourceListing) -> str | None:
    """Say which images of a source may be others than those that OUT was made of; None if none are.

    None, too, for a data set of an older version, which has no times. The images have the same paths and sizes.
    """
    path = out / TIMES_NAME
    try:
        with store_errors_as_oserror(path):
            before = SourceTimes(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    if before == source_times(listing):
        return None
    newer = sum(int((_newest_ns(split) > before.newest_ns).sum()) for split in listing.splits)
    images = f"{newer:,} of {len(listing):,} images are" if newer else "images are"
    return (
        f"{images} in files that have changed since {out} was written, by their times of change; what {out} holds "
        f"is left as it was. If their contents have changed, remove {out} and shard again; if not, remove {path}"
    )


def write_times(out: Path, listing: SourceListing, overwrite: bool) -> None:
    """Write down the times of a source, unless that was done before; an OUT that cannot be written to has none."""
    path = out / TIMES_NAME
    with suppress(OSError, ComaError), store_errors_as_oserror(path):
        if overwrite or not path.exists():
            write_atomically(path, json.dumps(asdict(source_times(listing))) + "\n")
