"""How a command ends: an exception becomes one line on stderr and an exit code, never a traceback."""

import io
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from coma.errors import BUG_EXIT_CODE, fault_of
from coma.shards.files import without_credentials
from coma.shards.text import visible

BROKEN_PIPE_EXIT_CODE = 141
"""As that of a program that SIGPIPE ended: who reads stdout has left, as `head` does."""
INTERRUPTED_EXIT_CODE = 130

log = logging.getLogger(__name__)


def prepare_streams() -> None:
    """Make the standard streams such that a command can do its work whatever they are.

    Closed ones become /dev/null, or a file of ours would take their numbers. What stdout's encoding lacks is written
    as escapes, as Python does on stderr.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, errors="backslashreplace", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_streams() -> int:
    """Write what stdout and stderr still hold; return the exit code, which is not 0 if stdout does not take it."""
    exit_code = 0
    try:
        sys.stdout.flush()
    except OSError as error:
        exit_code = _after_failed_stdout(error)
    try:
        sys.stderr.flush()
    except OSError:
        _abandon(sys.stderr)
    return exit_code


@contextmanager
def ended_by_failed_stdout() -> Iterator[None]:
    """End the command if stdout does not take what the block prints."""
    try:
        yield
    except OSError as error:
        raise SystemExit(_after_failed_stdout(error)) from None


def _after_failed_stdout(error: OSError) -> int:
    """Say why stdout takes no more, nothing if its reader has left as `head` does; return the exit code."""
    _abandon(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE_EXIT_CODE
    error.filename = "stdout"
    return report(error)


def _abandon(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, as Python would complain of it at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def report(error: BaseException) -> int:
    """Say in one line on stderr what went wrong, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED_EXIT_CODE
    fault = fault_of(error)
    verbose = logging.getLogger("coma").isEnabledFor(logging.DEBUG)
    if fault is not None:
        _print_error(str(fault))
        if verbose and fault is not error:
            log.debug("raised by:", exc_info=error)
        return fault.exit_code
    what = f"{type(error).__name__}: {error}".strip(": ")
    _print_error(f"this is a bug of coma: {what} ({'see below' if verbose else _saved(error)})")
    if verbose:
        log.debug("raised by:", exc_info=error)
    return BUG_EXIT_CODE


def _print_error(text: str) -> None:
    import typer

    with suppress(OSError, ValueError):  # nobody is there to read it
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {visible(without_credentials(text))}", err=True)


def _saved(error: BaseException) -> str:
    """Write the traceback of a bug to a new file, and say where."""
    text = without_credentials("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="coma-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"{' '.join(map(visible, sys.argv))}\n\n{text}")
    except OSError as failure:
        return f"its traceback cannot be written, {failure.strerror}: coma --verbose ... prints it"
    return f"its traceback is in {file.name}: please report it"
