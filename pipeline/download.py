"""Download of one remote file: whole, or an error that says what failed, in bounded time whatever the server does.

The store is reached through the `UPath` of the data set, which takes its credentials from where the store's library
looks for them (environment, profiles, instance roles). Messages never show them: URLs lose user info and query.
"""

import asyncio
import errno
import inspect
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback

from coma.errors import DataError
from coma.shards.files import without_credentials

log = logging.getLogger(__name__)

_TICK_S = 0.1
_PIECE_BYTES = 1 << 14
_JITTER = random.Random()  # the user's own generator is left alone
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_FINAL_STATUS = (401, 403, 404, 410)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of a download: tries, timeouts and the pauses in between."""

    tries: int = 5
    stall_s: float = 15.0
    """Seconds after which a connection that is too slow is given up."""
    least_bytes_per_s: float = 4096.0
    """A connection below this rate over `stall_s` is too slow. A link of 1 Mbit/s that 30 downloads share brings as
    much to each; below that, a shard would take most of a day."""
    total_s: float = 45.0
    """Seconds without success after which there is no further try."""
    first_pause_s: float = 0.5
    """Seconds before the second try; doubled before each further one, with jitter."""


class Stopped(Exception):
    """The download was ended from outside."""


def download(
    source: Path, fresh: Callable[[], Path], least_bytes: int, retry: RetryPolicy, stopped: threading.Event
) -> Path:
    """Copy a remote file to a local one.

    Args:
        source: the remote file, a UPath.
        fresh: makes an empty local file, another one at each call, as a thread that was given up may still write
            to the one before.
        least_bytes: bytes that the file has at least.
        retry: limits of tries and time.
        stopped: ends the download from another thread.

    Returns:
        the last file that `fresh` made, which is whole.

    Raises:
        DataError: after the last try, naming the file and what failed.
        OSError: the local disk has no room.
        Stopped: once `stopped` is set.
    """
    name, silent_s, reason = without_credentials(str(source)), 0.0, ""
    for number in range(1, retry.tries + 1):
        allowed_s, began = min(retry.stall_s, retry.total_s - silent_s), time.monotonic()
        watch = _Watch(allowed_s, retry.least_bytes_per_s * allowed_s, stopped)
        try:
            return _copy(source, fresh(), least_bytes, watch)
        except Exception as caught:
            error = _cause(caught)
            if isinstance(error, Stopped) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
                raise
            if not (reason and isinstance(error, TimeoutError)):  # an answer tells more than a timeout
                reason = _reason(error)
            final = _is_final(error)
        pause_s = retry.first_pause_s * 2 ** (number - 1) * _JITTER.uniform(0.5, 1.5)
        silent_s += min(time.monotonic() - began, 2 * allowed_s) + pause_s
        if final or number == retry.tries or silent_s >= retry.total_s:
            tries = "1 try" if number == 1 else f"{number} tries"
            raise DataError(
                f"shard {name} cannot be downloaded ({tries}): {reason}; "
                "see to it that the file can be read, then start again"
            ) from None  # the library's own error may show credentials
        log.warning("shard %s: %s; trying again in %.1f s", name, reason, pause_s)
        if stopped.wait(pause_s):
            break
    raise Stopped


@dataclass(frozen=True)
class _Watch:
    """Timeout of one request: it is given up if too few bytes come in the time allowed."""

    allowed_s: float
    needed_bytes: float
    stopped: threading.Event

    def result(self, future: "Future[Any]", arrived: Callable[[], int] = lambda: 0) -> Any:
        """Wait for a result; TimeoutError once `arrived` has grown by too few bytes in the time allowed."""
        seen, since = arrived(), time.monotonic()
        while not wait([future], _TICK_S).done:
            now, current = time.monotonic(), arrived()
            if self.stopped.is_set():
                future.cancel()
                raise Stopped
            if current - seen >= self.needed_bytes:
                seen, since = current, now
            elif now - since > self.allowed_s:
                future.cancel()
                if not current:  # the libraries of some stores hide errors, which they try to outlast
                    raise TimeoutError(f"no good answer for {self.allowed_s:.2g} s")
                needed = f"{self.needed_bytes:.0f} bytes"
                raise TimeoutError(f"less than {needed} came in {self.allowed_s:.2g} s")
        try:
            return future.result()
        except (CancelledError, asyncio.CancelledError) as error:
            raise OSError("the connection was given up") from error


def _copy(source: Path, target: Path, least_bytes: int, watch: _Watch) -> Path:
    """Try once; return `target` when it is whole."""
    remote: Any = source
    store, path, counter = remote.fs, remote.path, Callback()
    store.invalidate_cache()  # the listings, as the file may have been replaced since
    told = watch.result(_asked(store, "info", path)).get("size")
    expected = least_bytes if told is None else int(told)
    if expected < least_bytes:
        raise OSError(f"it is cut short: it has {expected} bytes, its manifest needs {least_bytes}")

    def arrived() -> int:
        """Bytes so far: by the callback, which not every store calls, or by the size, which grows in blocks."""
        size = 0
        with suppress(FileNotFoundError):  # gcsfs removes what it could not complete
            size = target.stat().st_size
        return max(int(counter.value), size)

    watch.result(_transfer(store, path, target, counter), arrived)
    size = target.stat().st_size
    if size < expected or (told is not None and size > expected):
        raise OSError(f"{size} bytes came instead of {expected}")
    return target


def _transfer(store: Any, path: str, target: Path, counter: Callback) -> "Future[Any]":
    """Begin to copy a file so that progress shows: each store needs other options for that."""
    if "hf" in _protocols(store):  # its `get_file` shows nothing for 10 MB at a time
        return _in_thread(_stream, store, path, target, counter)
    options: dict[str, Any] = {"callback": counter}
    if not {"http", "https"}.isdisjoint(_protocols(store)):
        import aiohttp

        options["timeout"] = aiohttp.ClientTimeout(total=None)  # by default it ends any download after 5 minutes
    elif not {"gs", "gcs"}.isdisjoint(_protocols(store)):
        options["concurrency"] = 1  # by default it shows nothing for 16 MB at a time
    elif store.async_impl and "max_concurrency" in inspect.signature(store._get_file).parameters:
        options["max_concurrency"] = 1  # by default s3fs shows nothing until it has 500 MB
    return _asked(store, "get_file", path, str(target), **options)


def _stream(store: Any, path: str, target: Path, counter: Callback) -> None:
    with store.open(path, "rb", block_size=0) as source, target.open("wb") as file:
        while data := source.read(_PIECE_BYTES):
            counter.relative_update(file.write(data))


def _asked(store: Any, method: str, *arguments: str, **options: Any) -> "Future[Any]":
    """Begin to call a method of a file system."""
    if not store.async_impl:
        return _in_thread(partial(getattr(store, method), **options), *arguments)
    return asyncio.run_coroutine_threadsafe(getattr(store, f"_{method}")(*arguments, **options), store.loop)


def _in_thread(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    future: Future[Any] = Future()

    def run() -> None:
        with suppress(InvalidStateError):  # given up meanwhile
            try:
                result = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    # No pool: python waits for a pool's threads at its end, and this one may hang for good.
    threading.Thread(target=run, name="coma-download", daemon=True).start()
    return future


def _protocols(store: Any) -> set[str]:
    return {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)


def _cause(error: Exception) -> BaseException:
    """The cause of an error: fsspec raises FileNotFoundError for any HTTP error met when it asks for a size."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _is_final(error: BaseException) -> bool:
    return isinstance(error, _FINAL) or _status(error) in _FINAL_STATUS


def _reason(error: BaseException) -> str:
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file"
    if status is not None and status >= 400:
        return f"the server answers {status} {_line(getattr(error, 'message', ''))}".rstrip()
    text = _line(error)
    return text if type(error) in (OSError, TimeoutError) and text else f"{type(error).__name__}: {text}"


def _status(error: BaseException) -> int | None:
    """HTTP status of an error, as the libraries of http, hf and gs carry it."""
    response = getattr(error, "response", None)
    for status in (getattr(error, "status", None), getattr(response, "status_code", None)):
        if isinstance(status, int):
            return status
    code = str(getattr(error, "code", ""))
    return int(code) if code.isdigit() else None


def _line(text: object) -> str:
    return without_credentials(" ".join(str(text).split()))[:300]
