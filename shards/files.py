"""Files that are whole or absent, here and in object stores.

A local file is written under a hidden temporary name, synced and renamed into place; an object is written here
first and uploaded once it is whole. A folder in a store is a `UPath` (universal_pathlib over fsspec), which has
a Path's methods, and is called a Path here and below.
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

from coma.errors import ComaError, UsageError

T = TypeVar("T")
_SUFFIX = ".coma-tmp"
_CHUNK_BYTES = 1 << 24
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
_STALL_S = 10.0  # without a byte
_HOPE_S = 45.0  # in which a question is put again
_USER_INFO = re.compile(r"(\w://)[^/\s'\"]*@")
_QUERY = re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"]*")
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_EXTRAS = {
    "s3": "pip install 'coma[s3]'",
    "s3a": "pip install 'coma[s3]'",
    "gs": "pip install 'coma[gcs]'",
    "gcs": "pip install 'coma[gcs]'",
    "hf": "pip install huggingface_hub",
    "http": "pip install aiohttp",
    "https": "pip install aiohttp",
}


def folder_at(text: str | Path) -> Path:
    """Return the folder that a user named: a Path, or a UPath for a URL such as s3://bucket/name.

    Raises UsageError for a scheme that nothing here can read.
    """
    if not isinstance(text, str):
        return text
    if not _URL.match(text):
        return Path(text)
    scheme, shown = text.split("://", 1)[0].lower(), without_credentials(text)
    from upath import UPath

    try:
        place = UPath(text)
        _give_up_stalled(place.fs)  # makes the connection's object: what is not installed says so
    except ImportError as error:
        way_out = _EXTRAS.get(scheme, str(error))
        raise UsageError(f"{shown}: reading {scheme}:// needs another package: {way_out}") from None
    except ValueError as error:
        raise UsageError(f"{shown}: {error}") from None
    return cast(Path, place)


def _give_up_stalled(store: Any) -> None:
    """Let a store end a connection that brings nothing; Google's would wait for ever, HTTP's for 5 minutes."""
    if getattr(store, "requests_timeout", 0) is None:
        from aiohttp import ClientTimeout

        store.requests_timeout = ClientTimeout(sock_connect=_STALL_S, sock_read=_STALL_S)
    elif "http" in store.protocol and hasattr(store, "client_kwargs"):
        from aiohttp import ClientTimeout

        limits = ClientTimeout(total=300, sock_connect=_STALL_S, sock_read=_STALL_S)
        store.client_kwargs.setdefault("timeout", limits)


def is_remote(path: Path) -> bool:
    """Whether a folder lies in an object store."""
    return not isinstance(path, Path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; an object store has none to make."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` when the block ends well, and leaves no trace otherwise.

    A process killed inside the block leaves the hidden temporary behind, for `remove_temporaries`.
    """
    if is_remote(path):
        with _uploading(path) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{_SUFFIX}")
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
    """Remove what killed processes left of their `replacing` in `folder`; nothing else is touched.

    With `names`, only what was to become a file of one of these names (without extension).
    """
    if is_remote(folder):
        return
    for temporary in folder.glob(f".*{_SUFFIX}"):
        if names is None or temporary.name[1:].split(".", 1)[0] in names:
            temporary.unlink(missing_ok=True)


@contextmanager
def as_local(path: Path) -> Iterator[Path]:
    """A local file with the contents of `path`, which may lie in a store: then a copy, for as long as it is used."""
    if not is_remote(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=path.name) as copy:
        with reaching(path), path.open("rb") as remote:
            shutil.copyfileobj(remote, copy, 1 << 22)
        copy.flush()
        yield Path(copy.name)


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Turn whatever a store's library raises in the block into an OSError, which all callers expect."""
    try:
        yield
    except (OSError, ComaError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def without_credentials(text: str) -> str:
    """A URL, or a text with URLs in it, without user info and queries."""
    return _QUERY.sub(r"\1", _USER_INFO.sub(r"\1", text))


def asking(path: Path, question: Callable[[], T]) -> T:
    """The answer to a question about `path`; a store that fails to answer is asked again after a growing pause.

    Raises OSError, and FileNotFoundError only if there is no such file.
    """
    if not is_remote(path):
        return question()
    began_s = time.monotonic()
    for pause_s in (*_PAUSES_S, None):
        try:
            with reaching(path):
                return question()
        except OSError as error:
            cause = error.__cause__  # fsspec's HTTP says FileNotFoundError whatever went wrong
            failed = isinstance(cause, OSError) or getattr(cause, "status", 404) not in (404, 410)
            if isinstance(error, FileNotFoundError) and not failed:
                raise
            hopeless = time.monotonic() - began_s > _HOPE_S or isinstance(error, PermissionError)
            if pause_s is None or hopeless:
                text = without_credentials(" ".join(str(cause if failed and cause else error).split()))
                raise OSError(f"the store does not answer: {text}") from None
            time.sleep(pause_s)
    raise AssertionError("unreachable")


def is_there(path: Path) -> bool:
    """Whether `path` is a file. Raises OSError if a store does not say."""
    if not is_remote(path):
        return path.is_file()
    try:
        return not stat.S_ISDIR(asking(path, path.stat).st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def _uploading(path: Path) -> Iterator[BinaryIO]:
    store: Any = path
    with tempfile.NamedTemporaryFile(suffix=_SUFFIX) as file:
        yield cast(BinaryIO, file)
        file.flush()
        with reaching(path):
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
    """Return the XXH3-64 of a file's bytes in hexadecimal; with an `xxhash.xxh3_64` hasher, of what it has
    taken in before and these.

    Raises OSError.
    """
    import xxhash

    hasher = xxhash.xxh3_64() if hasher is None else hasher
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    digest: str = hasher.hexdigest()
    return digest
