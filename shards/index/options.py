"""Options of `coma index`, light to import."""

from dataclasses import dataclass
from pathlib import Path

from coma.shards.option import Options, option


@dataclass(frozen=True, kw_only=True)
class IndexOptions(Options):
    """Options of indexing tars."""

    source: Path = option(help="Folder of WebDataset tars, at any depth, or one tar.", argument=True)
    out: Path | None = option(
        None, help="New or empty folder.", argument=True, shown_default="NAME-index in the current folder"
    )
    workers: int | None = option(None, help="Number of worker processes.", least=1, shown_default="one per core")
