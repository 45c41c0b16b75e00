"""Output of the command: results to stdout, everything else to stderr.

Progress bars appear on a terminal only; NO_COLOR and CI are honoured (by rich and by `interactive`).
"""

import json as _json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from coma.cli.faults import ended_by_failed_stdout
from coma.shards.files import without_credentials
from coma.shards.text import visible, visible_lines

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

_LEAST_COLUMNS = 20

if os.environ.get("COLUMNS", "").isdigit() and int(os.environ["COLUMNS"]) < _LEAST_COLUMNS:
    del os.environ["COLUMNS"]  # some tools say 0 for "unknown", and rich would print nothing


class _Plain(Console):
    """A console on which no name from the data commands the terminal, nor is taken for markup."""

    def __init__(self, **how: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Lay out a string as rich does, on one line."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does; control characters in a `Text` or whatever else are made visible at the last moment."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible_lines(text), style, control)


class _Stdout(_Plain):
    """Results. Ends the command if nobody reads them any more, or if they cannot be written."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does, and write it at once."""
        with ended_by_failed_stdout():
            super().print(*objects, **how)

    def on_broken_pipe(self) -> None:
        """Leave it to `print`."""
        raise BrokenPipeError


stderr = _Plain(stderr=True)
stdout = _Stdout(soft_wrap=True)


def interactive() -> bool:
    """Return whether a person watches stderr: a terminal, and not a CI job."""
    return stderr.is_terminal and not os.environ.get("CI")


def set_up_logging(verbosity: int) -> None:
    """Send the `coma` loggers to stderr: warnings at -1, information at 0, debugging at 1."""
    level = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[max(-1, min(1, verbosity))]
    handler = _AboveProgress() if interactive() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.raiseExceptions = False  # a stderr that takes no more lines ends no work
    logger = logging.getLogger("coma")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class _AboveProgress(logging.Handler):
    """Prints messages above a progress bar, each on one line however long, so that a command in it can be pasted."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        try:
            stderr.print(self.format(record), soft_wrap=True)
        except OSError:
            self.handleError(record)


class _Formatter(logging.Formatter):
    """Formatter that removes credentials from URLs, and makes control characters visible.

    Line breaks of a message stay, but not those of its arguments, which are names and what other programs said.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        record = copy(record)
        if isinstance(record.args, tuple):
            args = record.args
            record.args = tuple(visible(str(each)) if isinstance(each, str | PurePath) else each for each in args)
        return visible_lines(without_credentials(super().format(record)))


def progress(*columns: "ProgressColumn | str") -> "Progress":
    """Return a rich progress display on stderr that stays silent where nobody watches."""
    from rich.progress import Progress

    return Progress(*columns, console=stderr, disable=not interactive())


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show what a command is at, and for how long, while nothing of it can be counted; on a terminal only."""
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as shown:
        shown.live.transient = True
        shown.add_task(text)
        yield


def print_text(text: str) -> None:
    """Print a text for other programs on stdout, as it is."""
    with ended_by_failed_stdout():
        sys.stdout.write(text)
        sys.stdout.flush()


def print_result(result: Mapping[str, Any], *, json: bool, following: str | None = None) -> None:
    """Print a command's result on stdout: as one JSON object, or as aligned `name  value` lines.

    The last line names the command that may follow, if there is one.
    """
    if json:
        text = _json.dumps(result, default=str).replace("\x7f", "\\u007f")  # the one that json leaves
        print_text(without_credentials(text) + "\n")
        return
    result = result if following is None else {**result, "next": following}
    width = max((len(name) for name in result), default=0)
    for name, value in result.items():
        shown = f"{value:.4g}" if isinstance(value, float) else without_credentials(str(value))
        words = name.replace("_", " ") if name.isidentifier() else name  # a field's name, and no flag with its value
        stdout.print(f"{words:<{width}}  {shown}")


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Return counts by name as "1,200 jpeg, 3 png"."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
