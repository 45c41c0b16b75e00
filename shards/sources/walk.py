"""Walk through a source: every file below a folder, and what is passed over, by name and reason.

What is passed over is hidden files, the clutter of operating systems, links that lead round in a circle, and folders
that may not be read. Nothing else is left out, so that each file of a source can be accounted for.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coma.errors import DataError
from coma.shards.sources.listing import PassedOver, printable

log = logging.getLogger(__name__)

CLUTTER_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file below a folder, or a link to one."""

    path: str
    """Below the folder, with undecodable bytes as surrogates, as in `os`."""
    name: str
    size: int
    """Bytes; -1 if it is a link that leads nowhere."""
    mtime_ns: int
    is_regular: bool
    """Whether it is a file of bytes: no pipe, no device, no link that leads nowhere."""


def walk(root: Path, exclude: Path | None, passed_over: PassedOver) -> Iterator[FoundFile]:
    """Yield the files below `root`; links are followed, except in circles.

    What is passed over is added to `passed_over`, save for the folder `exclude`, which is no part of the source.
    Raises DataError if a folder cannot be read for another reason than its permissions.
    """
    skip = _identity(exclude) if exclude is not None and exclude.exists() else None
    waiting = [("", frozenset({_identity(root)}), False)]
    while waiting:
        prefix, ancestors, hidden = waiting.pop()
        for entry in _entries(root, prefix, passed_over):
            path, is_clutter = prefix + entry.name, hidden or entry.name.startswith(".")
            try:
                status = entry.stat()
            except OSError:  # a dangling link, or a circle of links
                status = None
            if status is not None and stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if identity == skip:
                    continue
                if identity in ancestors:
                    passed_over.add(path, "link in a circle", 0)
                    log.warning("passed over %s: a link to a folder that holds it", printable(path))
                else:
                    waiting.append((path + "/", ancestors | {identity}, is_clutter or entry.name in CLUTTER_FOLDERS))
                continue
            size, mtime_ns = (-1, 0) if status is None else (status.st_size, status.st_mtime_ns)
            if is_clutter:
                passed_over.add(path, "hidden", size)
                continue
            is_regular = status is not None and stat.S_ISREG(status.st_mode)
            yield FoundFile(path, entry.name, size, mtime_ns, is_regular)


def _entries(root: Path, prefix: str, passed_over: PassedOver) -> list["os.DirEntry[str]"]:
    folder = os.path.join(root, prefix)  # noqa: PTH118  (files are many)
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if not prefix or error.errno not in _CLOSED:
            raise DataError(f"cannot list the folder {printable(folder)}: {error.strerror}") from error
        passed_over.add(prefix, "unreadable folder", 0)
        log.warning("passed over the folder %s, which cannot be listed: %s", printable(folder[-200:]), error.strerror)
        return []


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
