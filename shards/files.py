"""Files that are whole or absent: written under a hidden temporary name, synced, renamed into place."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".coma-tmp"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` when the block ends well, and leaves no trace otherwise.

    A process killed inside the block leaves the hidden temporary behind, for `remove_temporaries`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` (a str as UTF-8) to `path`, which holds either all of it or what it held before."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left of their `replacing` in `folder`; nothing else is touched."""
    for temporary in folder.glob(f".*{_SUFFIX}"):
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once its folder is synced; some network file systems cannot do it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
