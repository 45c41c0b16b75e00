"""Where the command's words go: results to stdout, everything else to stderr.

Progress bars appear on a terminal only; NO_COLOR and CI are honoured (by rich and by `interactive`).
"""

import json as _json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from coma.shards.files import without_credentials

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from coma.training.logs.metrics import Progress as Standing

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False, soft_wrap=True)


def interactive() -> bool:
    """Whether a person watches stderr: a terminal, and not a CI job."""
    return stderr.is_terminal and not os.environ.get("CI")


def set_up_logging(verbosity: int) -> None:
    """Send the `coma` loggers to stderr: warnings at -1, information at 0, debugging at 1."""
    level = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[max(-1, min(1, verbosity))]
    handler: logging.Handler
    if interactive():
        from rich.logging import RichHandler

        handler = RichHandler(
            console=stderr, show_time=False, show_level=False, show_path=False, markup=False, highlighter=None
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logger = logging.getLogger("coma")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class _Formatter(logging.Formatter):
    """Shows no credentials, whatever URL a message has in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as ever, then cut."""
        return without_credentials(super().format(record))


def progress(*columns: "ProgressColumn | str") -> "Progress":
    """Return a rich progress display on stderr that stays silent where nobody watches."""
    from rich.progress import Progress

    return Progress(*columns, console=stderr, disable=not interactive())


def print_result(result: Mapping[str, Any], *, json: bool) -> None:
    """Print a command's result on stdout: as one JSON object, or as aligned `name  value` lines."""
    if json:
        sys.stdout.write(without_credentials(_json.dumps(result, default=str)) + "\n")
        return
    width = max((len(name) for name in result), default=0)
    for name, value in result.items():
        shown = f"{value:.4g}" if isinstance(value, float) else without_credentials(str(value))
        stdout.print(f"{name.replace('_', ' '):<{width}}  {shown}", markup=False)


@contextmanager
def live_line() -> "Iterator[Callable[[Standing], None] | None]":
    """Show where the run stands in one line that stays in place; None where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    if not interactive():
        yield None
        return
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.description}"))
    with progress(*columns) as bar:
        task = bar.add_task("starting", total=None)

        def show(now: "Standing") -> None:
            bar.update(task, completed=now.step, total=now.steps, description=now.figures)

        yield show
