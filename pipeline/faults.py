"""Handling of damaged samples: substitutes, the ledger that records them, and the fault budget."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coma.errors import ComaError, DataError, shell_command
from coma.pipeline.counter import Purpose, below, hash_numpy
from coma.shards.manifest import Manifest

log = logging.getLogger(__name__)

_TRIES_IN_SHARD = 8
_TRIES_ANYWHERE = 8


@dataclass(frozen=True)
class Substitution:
    """A sample of a step in whose place another was shown."""

    step: int  # from 1
    sample: int  # the one asked for
    substitute: int  # the one shown
    reason: str


def candidates(manifest: Manifest, seed: int, epoch: int, sample: int) -> Iterator[int]:
    """Candidates to substitute for a damaged sample, in the order to try them, the same in every run.

    The first eight are from the sample's own shard, which is open or downloaded already, the others from anywhere in
    its data set.
    """
    shard = int(manifest.shard_id[sample])
    length = int(manifest.shard_lengths[shard])
    first, everywhere = int(manifest.shard_lengths[:shard].sum()), manifest.siblings(sample)
    for attempt in range(_TRIES_IN_SHARD + _TRIES_ANYWHERE):
        bits = hash_numpy(Purpose.SUBSTITUTE, seed, epoch, sample, attempt)
        inside = attempt < _TRIES_IN_SHARD
        candidate = first + int(below(bits, length)) if inside else everywhere[int(below(bits, len(everywhere)))]
        if candidate != sample:
            yield candidate


def default_budget(samples: int) -> int:
    """Number of damaged samples that a rank tolerates: a thousandth of the data set, at least ten."""
    return max(10, samples // 1000)


class Ledger:
    """Record of all substitutions, which ends the run when too many different samples are damaged.

    A sample that is damaged in every epoch gets a line each time and counts once: the budget measures how much of
    the data set is damaged, not how long the run is. Each rank counts what it sees itself, from the start of
    its process.

    Args:
        path: ledger.jsonl, to which lines are appended; None: no file, the log alone.
        manifest: for the keys and shards of the samples.
        budget: number of different damaged samples that are tolerated.
    """

    def __init__(self, path: Path | None, manifest: Manifest, budget: int) -> None:
        self._path = path
        self.manifest = manifest
        self._budget = budget
        self._bad: frozenset[int] = frozenset()  # replaced, not changed, so that a copy counts by itself

    def record(self, substitutions: tuple[Substitution, ...]) -> None:
        """Append a line for each substitution.

        Raises:
            ComaError: the file cannot be written.
            DataError: the budget is exceeded; the lines are written first.
        """
        for entry in substitutions:
            both = [entry.sample, entry.substitute]
            key, substitute = self.manifest.keys(both)
            shard = int(self.manifest.shard_id[entry.sample])
            line = {
                "step": entry.step,
                "key": key,
                "shard": self.manifest.shards[shard],
                **self.manifest.source_names(entry.sample),
                "reason": entry.reason,
                "substitute": substitute,
            }
            named, instead = self.manifest.named(both)
            words = (entry.step, named, self.manifest.shards[shard], entry.reason, instead)
            log.warning("step %d: sample %s of %s: %s; showing %s instead", *words)
            if self._path is not None:
                _append(self._path, json.dumps(line) + "\n")
            self._bad |= {entry.sample}
        if len(self._bad) > self._budget:
            homes = (self.manifest.home_of_shard(int(self.manifest.shard_id[sample])) for sample in sorted(self._bad))
            folders = dict.fromkeys(home.place.rpartition("/")[0] for home in homes)
            allowed = (
                f"more than allowed (--fault-budget in coma pretrain and finetune), fault_budget={self._budget}"
                if self._budget
                else "and no other may stand in for one here (fault_budget=0)"
            )
            samples = f"{len(self._bad)} different samples" if len(self._bad) > 1 else "one sample"
            raise DataError(
                f"{samples} of {self.manifest.place} could not be read or decoded, {allowed}; "
                f"find {'them' if len(self._bad) > 1 else 'it'} with: "
                f"{' and '.join(shell_command('coma', 'verify', folder) for folder in folders)}"
            )


def _append(path: Path, line: str) -> None:
    """Append a line in one short write, so that ranks may share the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise ComaError(
            f"ledger {path} cannot be written ({error.strerror}); give it more room or another place, then start again"
        ) from error
