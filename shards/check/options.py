"""Options of `coma verify`, light to import."""

from dataclasses import dataclass
from pathlib import Path

from coma.shards.option import Options, option


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """Options of a verification."""

    data: Path | str | None = option(
        None,
        help="Data set made by `coma shard`: a folder, or a URL (s3://...).",
        argument=True,
        shown_default="the one in the current folder",
    )
    decode: bool = option(False, help="Decode every image as well, which is slower.")
