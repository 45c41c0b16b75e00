"""Advisory locks on files (flock), which the kernel frees when their process ends, however it ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of a file system that has no locks."""


def take_lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder; return False if another process holds it and `wait` is false.

    Raises:
        OSError: the file system has no locks (`NO_LOCKS`), or the descriptor is none.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free_lock(descriptor: int) -> None:
    """Unlock an open file. Closing it is not enough: a child that was forked meanwhile has it open too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def file_lock(path: Path, *, shared: bool = False) -> Iterator[int | None]:
    """Hold the lock of a file, which is made if need be; yield its descriptor, None if another process holds it.

    Raises:
        OSError: as `take_lock`, or the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not take_lock(descriptor, shared=shared):
            yield None
            return
        try:
            yield descriptor
        finally:
            free_lock(descriptor)
    finally:
        os.close(descriptor)
