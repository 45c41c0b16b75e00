"""Look at what the user named and list the images in it; which layout it has is detected, or said."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coma.errors import DataError, UsageError
from coma.shards.sources import tree
from coma.shards.sources.model import LAYOUTS, Sources, SplitSources, counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source, where looking at it is not enough. Raises UsageError for an unknown layout."""

    layout: str | None = None
    """One of LAYOUTS; None looks."""
    image_column: str | None = None
    """Column of a parquet file that holds the images, or of a list that holds the paths; None looks."""
    label_column: str | None = None
    """Column that holds the labels; None looks."""
    root: Path | None = None
    """Folder that the paths of a list lie in; None is the list's own."""

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.layout is not None and self.layout not in LAYOUTS:
            raise UsageError(f"--layout {self.layout} is not one of {', '.join(LAYOUTS)}")


def find_sources(
    source: Path,
    options: SourceOptions | None = None,
    exclude: Path | None = None,
    listed: Callable[[int], None] | None = None,
) -> Sources:
    """List the images of a source; say how it was read and what was found.

    `listed` hears now and then how many images were found; the folder `exclude` is not looked into.
    Raises UsageError if there is no such source or it has not the layout asked for; DataError if there is no
    image in it or it cannot be read.
    """
    options = options or SourceOptions()
    if not source.exists():
        raise UsageError(f"no such file or folder: {source}")
    layout = options.layout or _detected(source)
    sources = _listed(source, layout, options, exclude, listed)
    if not len(sources):
        what = f"; it has {counted(sources.ignored)}" if sources.ignored else ""
        raise DataError(f"no images in {source}{what}")
    _announce(sources)
    return sources


def _detected(source: Path) -> str:
    """Tell the layout of a source by the names in it. Raises UsageError if it is none we know."""
    if source.is_dir():
        return "folder"
    raise UsageError(f"{source} is a file; give the folder that holds the images")


def _listed(
    source: Path,
    layout: str,
    options: SourceOptions,
    exclude: Path | None,
    listed: Callable[[int], None] | None,
) -> Sources:
    if layout in ("folder", "flat"):
        listing, ignored = tree.list_tree(source, exclude, listed)
        splits, class_names = tree.arranged(listing, class_folders=layout == "folder")
        return Sources(source, layout, splits, class_names, ignored=ignored)
    raise UsageError(f"--layout {layout} is not built yet")


def _announce(sources: Sources) -> None:
    log.info("%s holds %s", sources.root, LAYOUTS[sources.layout])
    for split in sources.splits:
        images = "1 image" if len(split) == 1 else f"{len(split):,} images"
        log.info("found %s in split %s, %s", images, split.name, _classes(split))
    labelled = {split.labels is not None for split in sources.splits}
    if len(labelled) > 1:
        log.warning("some splits have labels and some have not")
    if sources.ignored:
        log.info("passed over %s: not images by name", counted(sources.ignored))


def _classes(split: SplitSources) -> str:
    if split.labels is None:
        return "without labels"
    classes = len(np.unique(split.labels))
    return "of 1 class" if classes == 1 else f"of {classes:,} classes"
