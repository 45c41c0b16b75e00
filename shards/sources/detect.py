"""Detection of a source's layout, and the listing of its images in that layout."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coma.errors import DataError, UsageError, shell_command
from coma.shards.manifest import INFO_NAME
from coma.shards.sources import folders, imagenet, path_list, tars, webdataset
from coma.shards.sources.folder_names import FEW, WAYS_OUT, split_by_folders
from coma.shards.sources.kinds import ARRAY_EXTENSIONS, extension, is_image_name, is_packed_name
from coma.shards.sources.listing import (
    LAYOUTS,
    ListingBuilder,
    PassedOver,
    SourceListing,
    SplitListing,
    counted,
    counted_images,
    printable,
    warn_of_packed,
)
from coma.shards.sources.masks import layouts as masks_layouts
from coma.shards.sources.masks.options import MaskOptions
from coma.shards.sources.masks.pairs import NO_MASKS
from coma.shards.sources.parquet.images import list_parquet
from coma.shards.sources.splits import SplitRules, held_out, split_of, split_of_source

log = logging.getLogger(__name__)

_SHOWN = 5  # classes that are named in a line


def list_source(
    source: Path,
    *,
    layout: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    root: Path | None = None,
    splits: SplitRules | None = None,
    masks: MaskOptions | None = None,
    exclude: Path | None = None,
    progress: Callable[[int], None] | None = None,
    arrays: bool = False,
) -> SourceListing:
    """List the images of a source, and log its layout and contents.

    Args:
        source: a file or folder.
        layout: one of LAYOUTS; None detects it.
        image_column: the column of a parquet file that holds the images, or of a list that holds the paths; None
            detects it.
        label_column: the column that holds the labels; None detects it.
        root: the folder that the paths of a list lie in; None is the list's own.
        splits: which folders, tars or tables are which split; None tells it from their names.
        masks: what is said of segmentation masks; by default nothing.
        exclude: a folder that is no part of the source.
        progress: called now and then with the number of images so far.
        arrays: whether images need not be 8-bit RGB, so that .npy are images, too.

    Raises:
        UsageError: there is no such source, it does not have the layout asked for, or its layout, splits or classes
            cannot be told.
        DataError: there is no image in it, or it cannot be read.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"--layout {layout} is not one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise UsageError(f"no such file or folder: {source}")
    masks = masks or MaskOptions()
    lister = _Lister(
        source, layout is not None, image_column, label_column, root, splits, masks, exclude, progress, arrays
    )
    detected = layout or (_layout_of_folder(source) if source.is_dir() else _layout_of_file(source, arrays))
    if root is not None and detected != "list":
        raise UsageError(f"--root {root} is for a list of paths; {source} holds {LAYOUTS[detected]}")
    listing = lister.list_as(detected)
    if layout is None and detected == "folder":
        containers = _containers(source, listing, arrays)
        if containers is not None:
            listing = lister.list_as(containers)
    if not len(listing):
        contents = f"; it has {counted(listing.passed_over.counts())}" if len(listing.passed_over) else ""
        if any(map(is_packed_name, listing.passed_over.paths)):
            contents += "; unpack what is packed (a plain .tar is read where it lies)"
        if not arrays and any(kind in ARRAY_EXTENSIONS for kind in listing.passed_over.kinds):
            contents += "; --channels N takes .npy and DICOM of N channels"
        raise DataError(f"no images in {source}{contents}")
    if [split.name for split in listing.splits] == [lister.only_split] != ["train"] and splits is None:
        log.info("split %s is the source's own name; --splits train=. makes it one to train on", lister.only_split)
    if listing.mask_coding is None and (masks.pattern != NO_MASKS or masks.classes is not None):
        masks.refuse(f"{source} is taken without masks, as {LAYOUTS[listing.layout]}")
    if splits is None and not listing.splits_are_told:
        _refuse_held_out(listing)
    _log_contents(source, listing)
    return listing


@dataclass(frozen=True)
class _Lister:
    """A source and what the user said of it."""

    source: Path
    told: bool
    """Whether the user named the layout."""
    image_column: str | None
    label_column: str | None
    root: Path | None
    splits: SplitRules | None
    masks: MaskOptions
    exclude: Path | None
    progress: Callable[[int], None] | None
    arrays: bool

    @property
    def only_split(self) -> str:
        """The split of a source that has none inside, by the source's own name."""
        return split_of_source(self.source.resolve().name)

    def list_as(self, layout: str) -> SourceListing:
        source = self.source
        if layout == "list":
            if source.is_dir():
                raise UsageError(f"--layout list: {source} is a folder; give a .csv, .tsv, .txt or .parquet")
            return path_list.list_paths(
                source, self.image_column, self.label_column, self.root, self.progress, self.splits
            )
        if layout == "parquet":
            return list_parquet(
                *(source, self.image_column, self.label_column, self.progress, self.exclude),
                rules=self.splits,
                only_split=self.only_split,
            )
        if layout in ("tar", "webdataset"):
            return self._list_tars(layout)
        if layout == "imagenet":
            if not imagenet.is_official(source):
                raise UsageError(f"--layout imagenet: {source} has no ILSVRC2012_img_train.tar or _val.tar")
            return imagenet.list_official(source, self.progress, self.exclude)
        if not source.is_dir():
            raise UsageError(f"--layout {layout}: {source} is a file")
        if layout == "kaggle":
            if not imagenet.is_kaggle(source):
                raise UsageError(f"--layout kaggle: there is no ILSVRC/Data/CLS-LOC in {source}")
            return imagenet.list_kaggle(source, self.progress, self.exclude)
        listing, others = folders.list_folder(source, self.exclude, self.progress, self.arrays)
        if layout in ("ade20k", "voc"):
            list_layout = masks_layouts.list_ade20k if layout == "ade20k" else masks_layouts.list_voc
            return list_layout(source, listing, others, self.masks, self.splits)
        return self._named(source, layout, listing, others)

    def _list_tars(self, layout: str) -> SourceListing:
        folder, paths, others = self.source.parent, [self.source.name], PassedOver()
        if self.source.is_dir():
            folder, (paths, others) = self.source, folders.files_below(self.source, ".tar", self.exclude)
        if not paths:
            raise UsageError(f"--layout {layout}: there is no .tar in {self.source}")
        if layout == "webdataset":
            listing = webdataset.list_webdataset(
                folder, paths, self.progress, self.splits, self.only_split, self.arrays
            )
        else:
            listing = self._named(folder, layout, *tars.list_tars(folder, paths, self.progress, self.arrays))
        listing.passed_over.add_all(others)
        return listing

    def _named(self, root: Path, layout: str, listing: ListingBuilder, passed_over: PassedOver) -> SourceListing:
        """Tell splits, classes and masks from the folders' names; an empty listing has none."""
        if not len(listing):
            return SourceListing(root, layout, (), None, passed_over=passed_over)
        pairs, masks_told = None, layout == "masks" or self.masks.pattern is not None
        if masks_told or layout == "tar" or not self.told:
            pairs = masks_layouts.paired(root, listing, passed_over, self.masks, layout == "masks")
        if pairs is not None:
            listing, layout = pairs.listing, "masks" if layout == "folder" else layout
        splits, class_names = split_by_folders(
            listing,
            layout != "flat",
            self.splits,
            only_split=self.only_split,
            told=self.told and layout != "masks",
        )
        if pairs is None:
            return SourceListing(root, layout, splits, class_names, passed_over=passed_over)
        masks_layouts.refuse_missing(splits, masks_told)
        coding = pairs.coding
        return SourceListing(root, layout, splits, class_names, passed_over=passed_over, mask_coding=coding)


def _layout_of_folder(folder: Path) -> str:
    if imagenet.is_kaggle(folder):
        return "kaggle"
    if imagenet.is_official(folder):
        return "imagenet"
    if masks_layouts.is_ade20k(folder):
        return "ade20k"
    return "folder" if masks_layouts.voc_folder(folder) is None else "voc"


def _layout_of_file(file: Path, arrays: bool) -> str:
    """Detect the layout of a file by its name, and of a tar by its members. Raises UsageError if it has none."""
    extension = file.suffix.lower()
    if extension == ".tar":
        if imagenet.is_official(file):
            return "imagenet"
        return "webdataset" if webdataset.is_webdataset(file.parent, [file.name], arrays) else "tar"
    if extension == ".parquet":
        return "parquet" if path_list.holds_images(file) else "list"
    if extension in (".csv", ".tsv", ".txt"):
        return "list"
    if is_image_name(file.name, arrays):
        raise UsageError(f"{file} is one image; give the folder that holds it")
    if is_packed_name(file.name):
        raise UsageError(f"{file} is packed; unpack it first (a plain .tar is read where it lies)")
    raise UsageError(
        f"{file} has an unknown format; give a folder of images, a .tar, a .parquet, or a .csv, .tsv or .txt list"
    )


def _containers(folder: Path, images: SourceListing, arrays: bool) -> str | None:
    """Return the layout of a folder's tars or parquet files if they, not its image files, are the data set.

    Where both are there, nearly all bytes decide. Raises UsageError if they do not.
    """
    in_files = sum(int(np.maximum(split.sizes, 0).sum()) for split in images.splits)
    others = images.passed_over
    data_sets = tuple(path.removesuffix(INFO_NAME) for path in others.paths if path.endswith(f"/{INFO_NAME}"))
    files: dict[str, list[str]] = {".tar": [], ".parquet": []}
    sizes = {"": in_files, ".tar": 0, ".parquet": 0}
    for path, kind, size in zip(others.paths, others.kinds, others.sizes, strict=True):
        is_ours = len(images) > 0 and path.startswith(data_sets)  # what was made of these images before
        if kind in files and not is_ours:
            files[kind].append(path)
            sizes[kind] += max(size, 0)
    if not any(files.values()):
        return None
    most = max(sizes, key=lambda kind: sizes[kind])
    counted = {
        "folder": counted_images(len(images)) if len(images) else "",
        "tar": _counted_files(files[".tar"], ".tar"),
        "parquet": _counted_files(files[".parquet"], ".parquet"),
    }
    both = " and ".join(filter(None, counted.values()))
    layout = {"": "folder", ".tar": "tar", ".parquet": "parquet"}[most]
    if sum(map(bool, counted.values())) > 1:
        ways = " or ".join(f"--layout {name}" for name, what in counted.items() if what)
        if sizes[most] < (1 - FEW) * sum(sizes.values()):
            raise UsageError(f"{folder} holds {both}: say which are the data set with {ways}")
        log.warning("%s holds %s: taken is %s; %s says otherwise", folder, both, counted[layout], ways)
    if layout == "folder":
        return None
    if layout == "tar":
        in_order = sorted(files[".tar"], key=os.fsencode)
        return "webdataset" if webdataset.is_webdataset(folder, in_order, arrays) else "tar"
    return "parquet"


def _counted_files(paths: list[str], ending: str) -> str:
    return f"{len(paths):,} {ending} {'file' if len(paths) == 1 else 'files'}" if paths else ""


def _refuse_held_out(listing: SourceListing) -> None:
    """Refuse to train on images in folders that are called val or test; warn of names that have such a word.

    Raises UsageError.
    """
    train = next((split for split in listing.splits if split.name == "train"), None)
    if train is None:
        return
    for folder in sorted({path.rpartition("/")[0] for i, path in enumerate(train.paths) if i not in train.refused}):
        parts = folder.split("/")
        for depth, part in enumerate(parts, start=1):
            if split_of(part) not in (None, "train"):
                raise UsageError(
                    f"{printable('/'.join(parts[:depth])[-200:])} looks like a split that is not to be trained on, "
                    f"but cannot be told from a class; {WAYS_OUT}"
                )
    named = [path for i, path in enumerate(train.paths) if i not in train.refused and held_out(path)]
    if named:
        log.warning(
            "%s for training %s a name that speaks of validation or test, such as %s; if they are not for training, %s",
            counted_images(len(named)),
            "has" if len(named) == 1 else "have",
            printable(named[0][-200:]),
            WAYS_OUT,
        )


def _log_contents(source: Path, listing: SourceListing) -> None:
    log.info("%s holds %s", source, LAYOUTS[listing.layout])
    for split in listing.splits:
        images, classes = counted_images(len(split)), _classes(split, listing.class_names)
        with_mask = "" if split.masks is None else f", {sum(map(bool, split.masks.paths)):,} with a mask"
        log.info("found %s in split %s, %s%s", images, split.name, classes, with_mask)
    refused = [(split, i) for split in listing.splits for i in split.refused]
    if refused:
        split, i = refused[0]
        log.warning(
            "%s set aside unread, such as %s (%s)",
            f"{counted_images(len(refused))} {'is' if len(refused) == 1 else 'are'}",
            printable(split.paths[i]),
            split.refused[i],
        )
    labelled = {split.labels is not None for split in listing.splits if split.name != "test"}
    if len(labelled) > 1:
        log.warning("some splits have labels and some have not")
    _warn_of_new_classes(listing)
    passed_over = listing.passed_over
    if len(passed_over):
        log.info("passed over %s: no images", counted(passed_over.counts()))
    warn_of_packed(passed_over)
    _hint_at_tables(source, listing)


def _warn_of_new_classes(listing: SourceListing) -> None:
    """Warn of classes that a split has and train has not: no model can learn them."""
    labels = {split.name: split.labels for split in listing.splits if split.labels is not None}
    train = labels.get("train")
    if train is None:
        return
    known = set(np.unique(train).tolist())
    for split, of_split in labels.items():
        new = sorted(set(np.unique(of_split).tolist()) - known)
        if new:
            names = listing.class_names
            shown = ", ".join(names[label] if names is not None else str(label) for label in new[:_SHOWN])
            more = ", ..." if len(new) > _SHOWN else ""
            classes = "1 class" if len(new) == 1 else f"{len(new):,} classes"
            log.warning("split train has no image of %s of split %s: %s%s", classes, split, shown, more)


def _hint_at_tables(source: Path, listing: SourceListing) -> None:
    """Say that a table beside images without labels is not read: it may hold their labels."""
    unlabelled = any(split.labels is None for split in listing.splits if split.name != "test")
    tables = [path for path in listing.passed_over.paths if extension(path) in (".csv", ".tsv") and "/" not in path]
    if unlabelled and tables and listing.layout != "kaggle":
        log.warning(
            "%s beside the images is not read; if it lists their labels, shard it instead of the folder: %s",
            printable(tables[0]),
            shell_command("coma", "shard", source / tables[0]),
        )


def _classes(split: SplitListing, names: tuple[str, ...] | None) -> str:
    """Return how many classes a split has, and the first of them."""
    if split.labels is None:
        return "without labels"
    labels = np.unique(split.labels).tolist()
    shown = ", ".join(names[label] if names is not None else str(label) for label in labels[:_SHOWN])
    more = ", ..." if len(labels) > _SHOWN else ""
    return f"of {'1 class' if len(labels) == 1 else f'{len(labels):,} classes'} ({shown}{more})"
