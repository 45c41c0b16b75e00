"""Detection of a source's layout, and the listing of its images in that layout."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coma.errors import DataError, UsageError
from coma.shards.sources import folders, imagenet, path_list, tars, webdataset
from coma.shards.sources.listing import LAYOUTS, SourceListing, SplitListing, counted, is_image_name, printable
from coma.shards.sources.parquet.images import list_parquet

log = logging.getLogger(__name__)

_PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def list_source(
    source: Path,
    *,
    layout: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    root: Path | None = None,
    exclude: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> SourceListing:
    """List the images of a source, and log its layout and contents.

    Args:
        source: a file or folder.
        layout: one of LAYOUTS; None detects it.
        image_column: the column of a parquet file that holds the images, or of a list that holds the paths; None
            detects it.
        label_column: the column that holds the labels; None detects it.
        root: the folder that the paths of a list lie in; None is the list's own.
        exclude: a folder that is passed over.
        progress: called now and then with the number of images so far.

    Raises:
        UsageError: there is no such source, or it does not have the layout asked for.
        DataError: there is no image in it, or it cannot be read.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"--layout {layout} is not one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise UsageError(f"no such file or folder: {source}")
    detected = layout or (_layout_of_folder(source) if source.is_dir() else _layout_of_file(source))
    if root is not None and detected != "list":
        raise UsageError(f"--root {root} is for a list of paths; {source} holds {LAYOUTS[detected]}")

    def list_as(layout: str) -> SourceListing:
        if layout == "list":
            if source.is_dir():
                raise UsageError(f"--layout list: {source} is a folder; give a .csv, .tsv, .txt or .parquet")
            return path_list.list_paths(source, image_column, label_column, root, progress)
        if layout == "parquet":
            return list_parquet(source, image_column, label_column, progress, exclude)
        if layout in ("tar", "webdataset"):
            return _list_tars(source, layout, progress, exclude)
        return _list_folder_or_imagenet(source, layout, progress, exclude)

    listing = list_as(detected)
    if not len(listing) and layout is None and detected == "folder":
        containers = _layout_of_containers(source, exclude)
        if containers is not None:
            listing = list_as(containers)
    if not len(listing):
        contents = f"; it has {counted(listing.ignored)}" if listing.ignored else ""
        raise DataError(f"no images in {source}{contents}")
    _log_contents(source, listing)
    return listing


def _layout_of_folder(folder: Path) -> str:
    if imagenet.is_kaggle(folder):
        return "kaggle"
    return "imagenet" if imagenet.is_official(folder) else "folder"


def _layout_of_file(file: Path) -> str:
    """Detect the layout of a file by its name, and of a tar by its members. Raises UsageError if it has none."""
    extension = file.suffix.lower()
    if extension == ".tar":
        if imagenet.is_official(file):
            return "imagenet"
        return "webdataset" if webdataset.is_webdataset(file.parent, [file.name]) else "tar"
    if extension == ".parquet":
        return "parquet" if path_list.holds_images(file) else "list"
    if extension in (".csv", ".tsv", ".txt"):
        return "list"
    if is_image_name(file.name):
        raise UsageError(f"{file} is one image; give the folder that holds it")
    if file.name.lower().endswith(_PACKED):
        raise UsageError(f"{file} is packed; unpack it first (a plain .tar is read where it lies)")
    raise UsageError(
        f"{file} has an unknown format; give a folder of images, a .tar, a .parquet, or a .csv, .tsv or .txt list"
    )


def _layout_of_containers(folder: Path, exclude: Path | None) -> str | None:
    """Detect the layout of a folder without image files by its tars and parquet files; None if it has none."""
    if paths := folders.files_below(folder, ".tar", exclude)[0]:
        return "webdataset" if webdataset.is_webdataset(folder, paths) else "tar"
    return "parquet" if folders.files_below(folder, ".parquet", exclude)[0] else None


def _list_folder_or_imagenet(
    source: Path, layout: str, progress: Callable[[int], None] | None, exclude: Path | None
) -> SourceListing:
    if layout == "imagenet":
        if not imagenet.is_official(source):
            raise UsageError(f"--layout imagenet: {source} has no ILSVRC2012_img_train.tar or _val.tar")
        return imagenet.list_official(source, progress)
    if not source.is_dir():
        raise UsageError(f"--layout {layout}: {source} is a file")
    if layout == "kaggle":
        if not imagenet.is_kaggle(source):
            raise UsageError(f"--layout kaggle: there is no ILSVRC/Data/CLS-LOC in {source}")
        return imagenet.list_kaggle(source, progress, exclude)
    listing, ignored = folders.list_folder(source, exclude, progress)
    splits, class_names = folders.split_by_folders(listing, class_folders=layout == "folder")
    return SourceListing(source, layout, splits, class_names, ignored=ignored)


def _list_tars(
    source: Path, layout: str, progress: Callable[[int], None] | None, exclude: Path | None
) -> SourceListing:
    folder, paths = source.parent, [source.name]
    if source.is_dir():
        folder, paths = source, folders.files_below(source, ".tar", exclude)[0]
    if not paths:
        raise UsageError(f"--layout {layout}: there is no .tar in {source}")
    if layout == "webdataset":
        return webdataset.list_webdataset(folder, paths, progress)
    listing, ignored = tars.list_tars(folder, paths, progress)
    splits, class_names = folders.split_by_folders(listing)
    return SourceListing(folder, layout, splits, class_names, ignored=ignored)


def _log_contents(source: Path, listing: SourceListing) -> None:
    log.info("%s holds %s", source, LAYOUTS[listing.layout])
    for split in listing.splits:
        images = "1 image" if len(split) == 1 else f"{len(split):,} images"
        log.info("found %s in split %s, %s", images, split.name, _classes(split))
    refused = [(split, i) for split in listing.splits for i in split.refused]
    if refused:
        split, i = refused[0]
        log.warning(
            "%s set aside unread, such as %s (%s)",
            "1 image is" if len(refused) == 1 else f"{len(refused):,} images are",
            printable(split.paths[i]),
            split.refused[i],
        )
    labelled = {split.labels is not None for split in listing.splits if split.name != "test"}
    if len(labelled) > 1:
        log.warning("some splits have labels and some have not")
    if listing.ignored:
        log.info("passed over %s: not images by name", counted(listing.ignored))


def _classes(split: SplitListing) -> str:
    if split.labels is None:
        return "without labels"
    classes = len(np.unique(split.labels))
    return "of 1 class" if classes == 1 else f"of {classes:,} classes"
