"""What is scored on which data, and where its scores are kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coma.errors import DataError, UsageError
from coma.exports.folder import is_export
from coma.runs.lines import append_line
from coma.runs.names import METRICS_NAME
from coma.runs.read import run_data, run_data_sets, run_of
from coma.shards.files import folder_at, is_remote, without_credentials

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """A run's checkpoint or an export, and the data set to score it on."""

    run: Path
    checkpoint: Path
    """The export itself, for an export."""
    data: Path
    trained_on: tuple[Path, ...] | None
    """Data sets of a run; None for an export, which no scores are added to."""

    @property
    def is_export(self) -> bool:
        """Whether it is an export."""
        return self.trained_on is None

    def kept(self, line: dict[str, Any]) -> dict[str, Any]:
        """Add a line of scores to a run's metrics; return it with where it was added, and what was scored on what."""
        added = False
        if self.trained_on is not None:
            if [_shown(self.data)] != [_shown(each) for each in self.trained_on]:
                line = {**line, "data": without_credentials(str(self.data))}
            added = append_metrics(self.run, line)
        return {
            **line,
            "data": without_credentials(str(self.data)),
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
            "metrics": str(self.run / METRICS_NAME) if added else None,
        }


def what_to_score(run_or_checkpoint: Path | str, data: Path | str | None) -> Scored:
    """Find a run's newest checkpoint (or the one named) or an export, and the data set, by default the run's own.

    Raises:
        DataError: no such run, or its data are not there, or several.
        UsageError: an export without data.
    """
    run_or_checkpoint = Path(run_or_checkpoint)
    exported = is_export(run_or_checkpoint)
    run, checkpoint = (run_or_checkpoint,) * 2 if exported else run_of(run_or_checkpoint)
    if exported and data is None:
        raise UsageError(f"{run} is an export, which names no data set: name one after it")
    if data is not None:
        return Scored(run, checkpoint, folder_at(data), None if exported else tuple(run_data_sets(run)))
    trained_on = run_data(run)
    if not is_remote(trained_on) and not trained_on.exists():  # a web server has no folders to ask for
        raise DataError(f"{trained_on}, which {run} was trained on, is not there: name the sharded data set")
    logger.info("data: %s, which the run was trained on", trained_on)
    return Scored(run, checkpoint, trained_on, (trained_on,))


def append_metrics(run: Path, line: dict[str, Any]) -> bool:
    """Append a line to RUN/metrics.jsonl; return False, with a warning, if it cannot be written."""
    try:
        append_line(run / METRICS_NAME, line)
    except OSError as error:
        logger.warning("the scores are not kept in %s: %s", run / METRICS_NAME, (error.strerror or "").lower())
        return False
    return True


def _shown(data: Path) -> str:
    return without_credentials(str(data if is_remote(data) else data.resolve()))
