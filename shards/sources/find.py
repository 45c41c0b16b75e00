"""Look at what the user named and list the images in it; which layout it has is detected, or said."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coma.errors import DataError, UsageError
from coma.shards.sources import imagenet, lists, tree, webdataset
from coma.shards.sources import tars as tars_of_trees
from coma.shards.sources.model import LAYOUTS, Sources, SplitSources, counted, is_image_name, printable
from coma.shards.sources.parquet import listing as parquet

log = logging.getLogger(__name__)

_PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


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
    layout = options.layout or (_layout_of_folder(source) if source.is_dir() else _layout_of_file(source))
    if options.root is not None and layout != "list":
        raise UsageError(f"--root {options.root} is for a list of paths; {source} holds {LAYOUTS[layout]}")
    sources = _listed(source, layout, options, exclude, listed)
    if not len(sources) and options.layout is None and layout == "folder":
        containers = _containers(source, exclude)
        if containers is not None:
            sources = _listed(source, containers, options, exclude, listed)
    if not len(sources):
        what = f"; it has {counted(sources.ignored)}" if sources.ignored else ""
        raise DataError(f"no images in {source}{what}")
    _announce(source, sources)
    return sources


def _layout_of_folder(folder: Path) -> str:
    if imagenet.is_kaggle(folder):
        return "kaggle"
    return "imagenet" if imagenet.is_official(folder) else "folder"


def _layout_of_file(file: Path) -> str:
    """Tell the layout of a file by its name, and of a tar by its members. Raises UsageError if it has none."""
    extension = file.suffix.lower()
    if extension == ".tar":
        if imagenet.is_official(file):
            return "imagenet"
        return "webdataset" if webdataset.is_webdataset(file.parent, [file.name]) else "tar"
    if extension == ".parquet":
        return "parquet" if lists.holds_images(file) else "list"
    if extension in (".csv", ".tsv", ".txt"):
        return "list"
    if is_image_name(file.name):
        raise UsageError(f"{file} is one image; give the folder that holds it")
    if file.name.lower().endswith(_PACKED):
        raise UsageError(f"{file} is packed; unpack it first (a plain .tar is read where it lies)")
    raise UsageError(
        f"{file} is a file of no kind that is known here: give a folder of images, a .tar, a .parquet, or a .csv or "
        ".txt list"
    )


def _containers(folder: Path, exclude: Path | None) -> str | None:
    """Tell the layout of a folder in which no file is an image by name; None if there is nothing else in it."""
    if tars := tree.files_below(folder, ".tar", exclude):
        return "webdataset" if webdataset.is_webdataset(folder, tars) else "tar"
    return "parquet" if tree.files_below(folder, ".parquet", exclude) else None


def _listed(
    source: Path,
    layout: str,
    options: SourceOptions,
    exclude: Path | None,
    listed: Callable[[int], None] | None,
) -> Sources:
    is_folder = source.is_dir()
    if layout in ("folder", "flat", "kaggle") and not is_folder:
        raise UsageError(f"--layout {layout}: {source} is a file")
    if layout in ("folder", "flat"):
        listing, ignored = tree.list_tree(source, exclude, listed)
        splits, class_names = tree.arranged(listing, class_folders=layout == "folder")
        return Sources(source, layout, splits, class_names, ignored=ignored)
    if layout == "kaggle":
        if not imagenet.is_kaggle(source):
            raise UsageError(f"--layout kaggle: there is no ILSVRC/Data/CLS-LOC in {source}")
        return imagenet.list_kaggle(source, listed, exclude)
    if layout == "imagenet":
        if not imagenet.is_official(source):
            raise UsageError(
                f"--layout imagenet: there is no ILSVRC2012_img_train.tar or _val.tar in {source}"
            )
        return imagenet.list_official(source, listed)
    if layout == "parquet":
        return parquet.list_parquet(source, options.image_column, options.label_column, listed, exclude)
    if layout == "list":
        if is_folder:
            raise UsageError(
                f"--layout list: {source} is a folder; give the .csv, .tsv, .txt or .parquet file"
            )
        return lists.list_paths(source, options.image_column, options.label_column, options.root, listed)
    folder = source if is_folder else source.parent
    tars = tree.files_below(source, ".tar", exclude) if is_folder else [source.name]
    if not tars:
        raise UsageError(f"--layout {layout}: there is no .tar in {source}")
    if layout == "webdataset":
        return webdataset.list_webdataset(folder, tars, listed)
    listing, ignored = tars_of_trees.list_tars(folder, tars, listed)
    splits, class_names = tree.arranged(listing)
    return Sources(folder, layout, splits, class_names, ignored=ignored)


def _announce(source: Path, sources: Sources) -> None:
    log.info("%s holds %s", source, LAYOUTS[sources.layout])
    for split in sources.splits:
        images = "1 image" if len(split) == 1 else f"{len(split):,} images"
        log.info("found %s in split %s, %s", images, split.name, _classes(split))
    refused = [(split, i) for split in sources.splits for i in split.refused]
    if refused:
        split, i = refused[0]
        log.warning(
            "%s set aside unread, such as %s (%s)",
            "1 image is" if len(refused) == 1 else f"{len(refused):,} images are",
            printable(split.paths[i]),
            split.refused[i],
        )
    labelled = {split.labels is not None for split in sources.splits if split.name != "test"}
    if len(labelled) > 1:
        log.warning("some splits have labels and some have not")
    if sources.ignored:
        log.info("passed over %s: not images by name", counted(sources.ignored))


def _classes(split: SplitSources) -> str:
    if split.labels is None:
        return "without labels"
    classes = len(np.unique(split.labels))
    return "of 1 class" if classes == 1 else f"of {classes:,} classes"
