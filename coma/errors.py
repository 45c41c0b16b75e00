"""What can go wrong that is not a bug: each error carries its exit code.

The one module that every layer may import; it imports none of them. A message is one line that names the value, the
limit it breaks, and the way out. The command prints it after ``error:`` and no traceback. What the system, a store or
a damaged file does is raised by other libraries; `fault_of` words it in the same way.
"""

import errno
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class ComaError(Exception):
    """Something failed that the user should hear about in one line (exit code 1)."""

    exit_code: ClassVar[int] = 1


class UsageError(ComaError):
    """The command, a flag or a configuration file is wrong (exit code 2)."""

    exit_code = 2


class DataError(ComaError):
    """The data are missing, damaged or not what they claim to be (exit code 3)."""

    exit_code = 3


class DivergedError(ComaError):
    """Losses, gradients, weights or features are not finite: the training diverged (exit code 4)."""

    exit_code = 4


class Preempted(ComaError):
    """The run was asked to stop, saved a checkpoint and can be started again (exit code 75)."""

    exit_code = 75


class LaunchFailed(SystemExit):
    """A process that was started for a run failed, and said why: a command ends with the same exit code.

    Args:
        exit_code: of that process.
        message: what it said, if that is known.
    """

    def __init__(self, exit_code: int, message: str | None = None) -> None:
        super().__init__(exit_code)
        self.exit_code, self.message = exit_code, message

    def as_error(self) -> BaseException:
        """Return what was raised in that process."""
        if self.exit_code == 130:
            return KeyboardInterrupt()
        kinds = (UsageError, DataError, DivergedError, Preempted)
        kind = next((kind for kind in kinds if kind.exit_code == self.exit_code), ComaError)
        return kind(
            self.message or f"a process of the run ended with exit code {self.exit_code}, and said why on stderr"
        )


def shell_command(*words: object) -> str:
    """Return a command that can be pasted into a shell, every word quoted where it must be.

    A path that begins with a dash is written as ./-path, so that it is not taken for an option. Control characters are
    written as escapes.
    """
    dashed = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return " ".join(map(_quoted, dashed))


def _quoted(word: str) -> str:
    """Return a word for a shell, on one line: $'a\\x1bb' if it has characters that cannot be seen."""
    if word.isprintable():
        return shlex.quote(word)
    letters = (letter if letter.isprintable() and letter not in "'\\" else _escape(letter) for letter in word)
    return f"$'{''.join(letters)}'"


def _escape(letter: str) -> str:
    code = ord(letter)
    if letter in "'\\":
        return f"\\{letter}"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as `os` has it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"


BUG_EXIT_CODE = 70
"""Exit code after an exception that nothing accounts for, which is a bug of coma (EX_SOFTWARE of sysexits.h)."""

_WAYS_OUT = {
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.ENOENT: "check the name",
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "free some space, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.EMFILE: "raise the limit (ulimit -n 65536), or use fewer --workers",
    errno.ENFILE: "close other programs, or use fewer --workers",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another place",
    errno.ELOOP: "remove the links that lead to each other",
    errno.ESTALE: "its file server has replaced it: mount it again, then repeat the command",
    errno.EIO: "the disk or its file server fails (dmesg says more): copy the data elsewhere",
    errno.ENOMEM: "free some memory, or use fewer --workers",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or use fewer --workers",
    errno.ETXTBSY: "let the program that uses it end",
    errno.ECONNREFUSED: "check the address and the network",
    errno.ETIMEDOUT: "check the address and the network",
    errno.ENETUNREACH: "check the address and the network",
    errno.EHOSTUNREACH: "check the address and the network",
    errno.ECONNRESET: "repeat the command",
    errno.EPIPE: "repeat the command",
}
_OUT_OF_MEMORY = (
    "out of memory|[Cc]an(?:'t|not) allocate memory|std::bad_alloc|MemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED"
    "|CUDNN_STATUS_ALLOC_FAILED"
)
"""What torch's allocators, CUDA's libraries, oneDNN and DALI say where memory is out."""
CHECK_STORE = "check the address, the network, and the credentials and what they allow"
"""The way out of an error of a store."""
_STORES = frozenset(
    (
        *("adlfs", "aiobotocore", "aiohttp", "azure", "boto3", "botocore", "fsspec", "gcsfs", "google"),
        *("httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "s3fs", "urllib3"),
    )
)
"""Packages whose errors are those of a store or of the way to it."""
_DAMAGED = frozenset(
    ("PIL", "binascii", "json", "lzma", "pyarrow", "safetensors", "safetensors_rust", "tarfile", "zipfile", "zlib")
)
"""Packages whose errors are those of a damaged file."""
_BUGS = (AssertionError, AttributeError, NameError, TypeError)
"""Errors that are bugs whatever package raises them."""


def fault_of(error: BaseException) -> ComaError | None:
    """Return what the system, a store, a library's installation or a damaged file did, as an error of one line.

    A ComaError is returned as it is; None means a bug of coma.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    packages = _packages_of(error)
    if isinstance(error, ComaError):
        return error
    if isinstance(error, _BUGS):
        return None
    if isinstance(error, OSError) and not is_of_a_store(error):
        return ComaError(in_words(error))
    if is_of_a_store(error):
        return ComaError(f"a store does not answer as it should: {text} ({type(error).__name__}); {CHECK_STORE}")
    if not packages.isdisjoint(_DAMAGED) or type(error).__name__ == "UnpicklingError":
        return DataError(f"a file is damaged: {text} ({type(error).__name__}); copy it again")
    if isinstance(error, EOFError):
        return DataError(f"a file ends too early: {text}; copy it again")
    if isinstance(error, UnicodeError):
        return ComaError(f"a name or a text is not UTF-8: {text}; rename or convert it")
    if type(error).__name__ == "OutOfMemoryError":  # torch's; torch is not imported for its sake
        return ComaError(
            "the GPU's memory does not hold it: give a smaller --batch-size, or --device cpu where the command has it"
        )
    if is_out_of_memory(error):
        what = f" ({text})" if isinstance(error, MemoryError) else ""
        return ComaError(f"there is not enough memory{what}: give a smaller --batch-size or fewer --workers")
    if isinstance(error, RecursionError):
        return ComaError(f"folders, links or a file are nested too deeply ({text}): make them flatter")
    if isinstance(error, ImportError) and not (error.name or "").startswith("coma"):
        return ComaError(f"a package is missing or damaged: {text}; `coma doctor` says how to repair the installation")
    if type(error).__name__ == "AcceleratorError":  # torch's
        return ComaError(f"the GPU or its driver failed: {text.split(' CUDA kernel')[0]}; see `coma doctor`")
    return None


def is_of_a_store(error: BaseException) -> bool:
    """Whether an error is one of a store, or of the way to it."""
    return not _packages_of(error).isdisjoint(_STORES)


def _packages_of(error: BaseException) -> set[str]:
    return {kind.__module__.split(".")[0] for kind in type(error).__mro__}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, a GPU's or the machine's, in whatever words a library says so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and bool(re.search(_OUT_OF_MEMORY, str(error)))


def in_words(error: OSError) -> str:
    """Return the name, the cause and the way out of a system's error as text."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    cause = error.strerror or " ".join(str(error).split()) or type(error).__name__
    way_out = _WAYS_OUT.get(error.errno or 0)
    if not names and isinstance(error, FileNotFoundError):
        try:
            Path.cwd()
        except FileNotFoundError:
            return "the current folder has been removed; change to another"
    if not names and isinstance(error, PermissionError):
        way_out = CHECK_STORE
    return ": ".join([*filter(None, names), str(cause)]) + (f"; {way_out}" if way_out else "")


def did_you_mean(word: str, words: Iterable[str], most: int = 1) -> str:
    """Return "did you mean 'a' or 'b'?" for the `most` closest of `words`, an empty string if none is close."""
    import difflib  # only where something went wrong

    close = difflib.get_close_matches(word, list(words), n=most, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ""
