"""Atomic writes, retries, temporary copies and hashes for local files and objects in a store.

A local file is written under a hidden temporary name, synced and renamed into place; an object is written to a
local temporary file first and uploaded once it is whole. A folder in a store is a `UPath` (universal_pathlib over
fsspec), which has a Path's methods and is annotated as a Path everywhere.
"""

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote_to_bytes

from coma.errors import CHECK_STORE, ComaError, UsageError, in_words

T = TypeVar("T")
_TEMPORARY_SUFFIX = ".coma-tmp"
_CHUNK_BYTES = 1 << 24
_RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
_RETRY_FOR_S = 45.0
_STALL_TIMEOUT_S = 10.0  # without a byte
_USER_INFO = re.compile(r"(\w://)[^/\s'\"]*@")
_QUERY = re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"]*")
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FILE_URL_HOST = re.compile("^file://([^/]*)", re.IGNORECASE)
_PATH_OF_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/(.*)", re.IGNORECASE | re.DOTALL)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra that reads a scheme."""
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}
"""The package that reads a scheme, where no extra has it."""


def folder_at(text: str | Path) -> Path:
    """Return the folder that a user named: a Path, or a UPath for a URL such as s3://bucket/name.

    Raises UsageError for a scheme that nothing here can read.
    """
    if not isinstance(text, str):
        return text
    if (host := _FILE_URL_HOST.match(text)) and host[1].lower() not in ("", "localhost"):
        raise UsageError(f"{text}: a file:// URL has three slashes and a whole path: file:///folder/name")
    if host or not _URL.match(text):
        return local_path(Path(text))
    scheme, shown = text.split("://", 1)[0].lower(), without_credentials(text)
    from upath import UPath

    try:
        place = UPath(text)
        _set_stall_timeout(place.fs)  # `.fs` makes the connection object, which fails if a package is missing
    except ImportError as error:
        way_out = _way_to_install(scheme) or str(error)
        raise UsageError(f"{shown}: reading {scheme}:// needs another package: {way_out}") from None
    except ValueError as error:
        raise UsageError(f"{shown}: {error}") from None
    return cast(Path, place)


def _way_to_install(scheme: str) -> str:
    """Return the command that installs what reads a scheme, an empty string if that is not known."""
    from coma.installed.installation import installation  # only where something is missing

    if scheme in _EXTRAS:
        return installation().extra(_EXTRAS[scheme])
    return installation().install(_PACKAGES[scheme]) if scheme in _PACKAGES else ""


def local_path(path: Path) -> Path:
    """Return the path that a file:// URL stands for, any other path as it is.

    A Path of a URL has lost one of its slashes. Raises UsageError for another URL, unless there is such a file.
    """
    url = _PATH_OF_URL.match(str(path))
    if url is None or path.exists():
        return path
    scheme, rest = url[1].lower(), url[2]
    if scheme != "file":
        shown = without_credentials(f"{scheme}://{rest.lstrip('/')}")
        raise UsageError(f"{shown}: only a local path can stand here; copy it to a folder of this machine first")
    if "?" in rest or "#" in rest:
        raise UsageError(f"{path}: ? and # of a file's name are written %3F and %23 in a file:// URL")
    rest = rest.lstrip("/").removeprefix("localhost/")
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(f"/{rest}"))))


def _set_stall_timeout(store: Any) -> None:
    """End connections that deliver nothing: by default Google's wait for ever and HTTP's for 5 minutes."""
    if getattr(store, "requests_timeout", 0) is None:
        from aiohttp import ClientTimeout

        store.requests_timeout = ClientTimeout(sock_connect=_STALL_TIMEOUT_S, sock_read=_STALL_TIMEOUT_S)
    elif "http" in store.protocol and hasattr(store, "client_kwargs"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=300, sock_connect=_STALL_TIMEOUT_S, sock_read=_STALL_TIMEOUT_S)
        store.client_kwargs.setdefault("timeout", timeout)


def is_remote(path: Path) -> bool:
    """Whether a folder lies in an object store."""
    return not isinstance(path, Path)


def make_folder(path: Path) -> None:
    """Make a folder and its parents; do nothing in an object store, which has no folders."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` when the block ends without an error, and is removed otherwise.

    A process killed inside the block leaves the hidden temporary behind, for `remove_temporaries`.
    """
    if is_remote(path):
        with _uploading(path) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{_TEMPORARY_SUFFIX}")
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


def remove_temporaries(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove the temporary files that killed processes left in `folder` while they were in `replacing`.

    With `names`, only those of files with one of these names (without extension) are removed.
    """
    if is_remote(folder):
        return
    for temporary in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        if names is None or temporary.name[1:].split(".", 1)[0] in names:
            temporary.unlink(missing_ok=True)


@contextmanager
def as_local(path: Path) -> Iterator[Path]:
    """Yield a local file with the contents of `path`: for a path in a store, a temporary copy."""
    if not is_remote(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=path.name) as copy:
        with store_errors_as_oserror(path), path.open("rb") as remote:
            shutil.copyfileobj(remote, copy, 1 << 22)
        copy.flush()
        yield Path(copy.name)


@contextmanager
def open_for_arrow(path: Path) -> Iterator[Any]:
    """Open a file for pyarrow: one of its own if it is local, whose threads then need no lock of Python's.

    With a file of Python's, a process that ends soon after a read aborts at times (apache/arrow#34314). It is not
    memory-mapped: if it is truncated meanwhile, that raises an error rather than kill the process.
    """
    from pyarrow import OSFile

    with (
        store_errors_as_oserror(path),
        path.open("rb") if is_remote(path) else OSFile(os.fsencode(path), "rb") as file,
    ):
        yield file


@contextmanager
def store_errors_as_oserror(path: Path) -> Iterator[None]:
    """Raise any error of a store's library in the block as an OSError, which all callers handle."""
    try:
        yield
    except (OSError, ComaError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Raise any error of a store's library in the block as a ComaError that names `path`."""
    try:
        with store_errors_as_oserror(path):
            yield
    except OSError as error:
        if not is_remote(path):
            raise
        cause = in_words(error).removesuffix(f"; {CHECK_STORE}")
        raise ComaError(f"{path}: {cause}; {CHECK_STORE}") from error


def without_credentials(text: str) -> str:
    """Remove user info and queries from a URL, or from all URLs in a text."""
    return _QUERY.sub(r"\1", _USER_INFO.sub(r"\1", text))


def retrying(path: Path, request: Callable[[], T]) -> T:
    """Return the result of a request about `path`; a request to a store is retried with growing pauses.

    Raises OSError, and FileNotFoundError only if there is no such file.
    """
    if not is_remote(path):
        return request()
    began_s = time.monotonic()
    for pause_s in (*_RETRY_PAUSES_S, None):
        try:
            with store_errors_as_oserror(path):
                return request()
        except OSError as error:
            cause = error.__cause__  # fsspec's HTTP says FileNotFoundError whatever went wrong
            failed = isinstance(cause, OSError) or getattr(cause, "status", 404) not in (404, 410)
            if isinstance(error, FileNotFoundError) and not failed:
                raise
            too_late = time.monotonic() - began_s > _RETRY_FOR_S
            if pause_s is None or too_late or isinstance(error, PermissionError):
                text = without_credentials(" ".join(str(cause if failed and cause else error).split()))
                raise OSError(f"the store does not answer: {text}") from None
            time.sleep(pause_s)
    raise AssertionError("unreachable")


def is_there(path: Path) -> bool:
    """Whether `path` is a file. Raises OSError if a store does not answer."""
    if not is_remote(path):
        return path.is_file()
    try:
        return not stat.S_ISDIR(retrying(path, path.stat).st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def _uploading(path: Path) -> Iterator[BinaryIO]:
    store: Any = path
    with tempfile.NamedTemporaryFile(suffix=_TEMPORARY_SUFFIX) as file:
        yield cast(BinaryIO, file)
        file.flush()
        with store_errors_as_oserror(path):
            store.fs.put_file(file.name, store.path)


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once its folder is synced; some network file systems cannot do it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def hash_file(path: Path, hasher: Any = None) -> str:
    """Return the XXH3-64 hash of a file's bytes in hexadecimal. Raises OSError.

    A given `hasher` (an `xxhash.xxh3_64`) is updated with them, so that the hash covers what it was fed before as well.
    """
    import xxhash

    hasher = xxhash.xxh3_64() if hasher is None else hasher
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    digest: str = hasher.hexdigest()
    return digest
