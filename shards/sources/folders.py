"""Layouts `folder` and `flat`: folders of images."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from coma.shards.sources.kinds import HEAD_BYTES, extension, is_image, kind, refused_by_name
from coma.shards.sources.listing import ListingBuilder, PassedOver
from coma.shards.sources.walk import FoundFile, walk


def list_folder(
    root: Path,
    exclude: Path | None = None,
    progress: Callable[[int], None] | None = None,
    arrays: bool = False,
) -> tuple[ListingBuilder, PassedOver]:
    """List the images under `root` but not in the folder `exclude`, and the files that are none.

    An image is what has the extension or the first bytes of one; with `arrays` a .npy is one, too. Raises DataError if
    a folder cannot be read.
    """
    listing, passed_over = ListingBuilder(progress), PassedOver()
    for file in walk(root, exclude, passed_over):
        if is_image(file.name, file.size if file.is_regular else 0, partial(_head, root, file), arrays):
            listing.add(file.path, file.size, file.mtime_ns, refused=refused_by_name(file.name))
        else:
            passed_over.add(file.path, kind(file.name), file.size)
    return listing, passed_over


def files_below(folder: Path, ending: str, exclude: Path | None = None) -> tuple[list[str], PassedOver]:
    """Return the paths of the files below a folder that have this extension, and all others.

    Raises DataError if a folder cannot be read.
    """
    paths, others = [], PassedOver()
    for file in walk(folder, exclude, others):
        if extension(file.name) == ending:
            paths.append(file.path)
        else:
            others.add(file.path, kind(file.name), file.size)
    return sorted(paths, key=os.fsencode), others


def _head(root: Path, file: FoundFile) -> bytes:
    """Return the first bytes of a file, none if it cannot be read."""
    try:
        with open(os.path.join(root, file.path), "rb", buffering=0) as opened:  # noqa: PTH118, PTH123  (files are many)
            return opened.read(HEAD_BYTES)
    except OSError:
        return b""
