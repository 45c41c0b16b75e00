"""How to shard: all that `coma shard` asks for besides the source and where its shards go."""

import re
from dataclasses import dataclass
from pathlib import Path

from coma.errors import UsageError
from coma.shards.images.prepare import MAX_PIXELS, PixelOptions
from coma.shards.write.pool import ENGINES

CHECKS = ("full", "header")


@dataclass(frozen=True)
class ShardOptions:
    """How to shard. Raises UsageError for a value outside its limits."""

    seed: int = 0
    """Of the shuffle."""
    shard_bytes: int | None = None
    """About how large a tar is to be; None is 256 MiB, or less where that makes fewer than 16 shards."""
    val_fraction: float = 0.0
    """The part of a source without validation images to hold out as split `val`."""
    resize_px: int | None = None
    """Re-encode as JPEG with the shorter side at most this long; None passes the bytes through untouched."""
    quality: int = 90
    """JPEG quality of re-encoded images, 1 to 100."""
    check: str = "full"
    """"full" decodes every image, "header" looks at its header alone."""
    max_pixels: int = MAX_PIXELS
    """An image with more is set aside as a bomb."""
    dedupe: bool = False
    """Set exact duplicates aside; reads the source twice."""
    workers: int | None = None
    """Processes; None is one a core."""
    engine: str = "processes"
    """Where they run: "processes" of this machine, or tasks of a "ray" cluster."""
    part: tuple[int, int] | None = None
    """Write part i (from 1) of n alone; the part that ends last merges them."""
    layout: str | None = None
    """How to read the source, one of `sources.model.LAYOUTS`; None looks."""
    image_column: str | None = None
    """Of a parquet source: the column of images; of a list: the column of paths. None looks."""
    label_column: str | None = None
    root: Path | None = None
    """The folder that the paths of a list lie in; None is the list's own."""

    def __post_init__(self) -> None:
        """Check the limits."""
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed} is not between 0 and 2^63")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise UsageError(f"--shard-bytes {self.shard_bytes} is too small; 256MiB is usual")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction {self.val_fraction} is not between 0 (none) and 1")
        if self.check not in CHECKS:
            raise UsageError(f"--check {self.check} is not one of {', '.join(CHECKS)}")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers} is less than 1")
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine} is not one of {', '.join(ENGINES)}")
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise UsageError(
                f"--part {self.part_name} is not between 1/{self.part[1]} and {self.part[1]}/{self.part[1]}"
            )
        _ = self.pixels

    @property
    def pixels(self) -> PixelOptions:
        """What is done to each image."""
        return PixelOptions(self.resize_px, self.quality, self.check == "full", self.max_pixels)

    @property
    def part_name(self) -> str | None:
        """As "3/16"."""
        return None if self.part is None else f"{self.part[0]}/{self.part[1]}"


def parse_part(text: str) -> tuple[int, int]:
    """Read "3/16". Raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None:
        raise UsageError(f"--part {text} is not a part; write the third of sixteen as 3/16")
    return int(match[1]), int(match[2])
