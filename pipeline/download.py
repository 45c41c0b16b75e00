"""One remote file to one local file: whole, or an error that says what failed. Bounded in time whatever the
server does.

The store is reached through the `UPath` of the data set, which brings its credentials by the ecosystem's own
means (environment, profiles, instance roles). They are never in a message: URLs lose user info and query.
"""

import asyncio
import errno
import inspect
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coma.errors import DataError
from coma.shards.files import without_credentials

log = logging.getLogger(__name__)

_TICK_S = 0.1
_JITTER = random.Random()  # the user's own generator is left alone
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_FINAL_STATUS = (401, 403, 404, 410)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Patience:
    """How long a download goes on hoping."""

    tries: int = 5
    stall_s: float = 15.0
    """A connection that brings no byte for so long is given up."""
    total_s: float = 45.0
    """No further try once so much time has gone by without a byte."""
    first_pause_s: float = 0.5
    """Before the second try; doubled before each further one, and jittered."""


class Stopped(Exception):
    """Nobody waits for the download any more."""


def download(
    source: Path, fresh: Callable[[], Path], least_bytes: int, patience: Patience, stopped: threading.Event
) -> Path:
    """Copy a remote file to a local one.

    Args:
        source: the remote file, a UPath.
        fresh: makes an empty local file, another one at each call: what writes to the one before may be
            beyond recall.
        least_bytes: a shorter file is no good.
        patience: how often, how long.
        stopped: ends the download from another thread.

    Returns:
        the last file that `fresh` made, which is whole.

    Raises:
        DataError: after the last try, naming the file and what failed.
        OSError: the local disk has no room.
        Stopped: once `stopped` is set.
    """
    name, silent_s = without_credentials(str(source)), 0.0
    for number in range(1, patience.tries + 1):
        allowed_s, began = min(patience.stall_s, patience.total_s - silent_s), time.monotonic()
        try:
            return _copy(source, fresh(), least_bytes, allowed_s, stopped)
        except Exception as caught:
            error = _cause(caught)
            if isinstance(error, Stopped) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
                raise
            reason, final = _reason(error), _is_final(error)
        pause_s = patience.first_pause_s * 2 ** (number - 1) * _JITTER.uniform(0.5, 1.5)
        silent_s += min(time.monotonic() - began, 2 * allowed_s) + pause_s
        if final or number == patience.tries or silent_s >= patience.total_s:
            tries = "1 try" if number == 1 else f"{number} tries"
            raise DataError(
                f"shard {name} cannot be downloaded ({tries}): {reason}; "
                "see to it that the file can be read, then start again"
            ) from None  # the library's own error may show what must not be seen
        log.warning("shard %s: %s; trying again in %.1f s", name, reason, pause_s)
        if stopped.wait(pause_s):
            break
    raise Stopped


def _copy(source: Path, target: Path, least_bytes: int, allowed_s: float, stopped: threading.Event) -> Path:
    """One try; `target` when all of it is there."""
    remote: Any = source
    store, path = remote.fs, remote.path

    def written() -> tuple[int, ...]:
        status = target.stat()
        return status.st_size, status.st_blocks, status.st_mtime_ns

    store.invalidate_cache()  # of listings: the file may have been put right since
    told = _run(store, "info", (path,), {}, allowed_s, stopped, lambda: None).get("size")
    expected = least_bytes if told is None else int(told)
    if expected < least_bytes:
        raise OSError(f"it is cut short: it has {expected} bytes, its manifest needs {least_bytes}")
    _run(store, "get_file", (path, str(target)), _transfer_options(store), allowed_s, stopped, written)
    size = target.stat().st_size
    if size < expected or (told is not None and size > expected):
        raise OSError(f"{size} bytes came instead of {expected}")
    return target


def _run(
    store: Any,
    method: str,
    arguments: tuple[str, ...],
    options: dict[str, Any],
    allowed_s: float,
    stopped: threading.Event,
    progress: Callable[[], object],
) -> Any:
    """Call a method of a file system; TimeoutError when `progress` stays the same for `allowed_s`."""
    future = _started(store, method, arguments, options)
    seen, since = progress(), time.monotonic()
    while not wait([future], _TICK_S).done:
        now = time.monotonic()
        if (current := progress()) != seen:
            seen, since = current, now
        if stopped.is_set() or now - since > allowed_s:
            future.cancel()
            if stopped.is_set():
                raise Stopped
            raise TimeoutError(f"nothing came for {allowed_s:.2g} s")
    try:
        return future.result()
    except (CancelledError, asyncio.CancelledError) as error:
        raise OSError("the connection was given up") from error


def _started(store: Any, method: str, arguments: tuple[str, ...], options: dict[str, Any]) -> "Future[Any]":
    if store.async_impl:
        return asyncio.run_coroutine_threadsafe(
            getattr(store, f"_{method}")(*arguments, **options), store.loop
        )
    future: Future[Any] = Future()

    def run() -> None:
        try:
            result = getattr(store, method)(*arguments, **options)
        except BaseException as error:
            if not future.cancelled():
                future.set_exception(error)
        else:
            if not future.cancelled():
                future.set_result(result)

    # No pool: python waits for a pool's threads at its end, and this one may hang for good.
    threading.Thread(target=run, name="coma-download", daemon=True).start()
    return future


def _transfer_options(store: Any) -> dict[str, Any]:
    """What makes a store deliver as the bytes come, for as long as they come."""
    if _is_http(store):
        import aiohttp

        return {"timeout": aiohttp.ClientTimeout(total=None)}  # it ends any download after 5 minutes else
    if store.async_impl and "max_concurrency" in inspect.signature(store._get_file).parameters:
        return {
            "max_concurrency": 1
        }  # s3fs writes nothing until it has 500 MB else; `_run` would see silence
    return {}


def _is_http(store: Any) -> bool:
    return not {"http", "https"}.isdisjoint(
        (store.protocol,) if isinstance(store.protocol, str) else store.protocol
    )


def _cause(error: Exception) -> BaseException:
    """fsspec calls whatever an HTTP server answers to a question of size a FileNotFoundError."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _is_final(error: BaseException) -> bool:
    return isinstance(error, _FINAL) or getattr(error, "status", None) in _FINAL_STATUS


def _reason(error: BaseException) -> str:
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file"
    if isinstance(status, int) and status >= 400:
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    text = without_credentials(" ".join(str(error).split()))[:300]
    return text if type(error) in (OSError, TimeoutError) and text else f"{type(error).__name__}: {text}"
