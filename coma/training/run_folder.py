"""Choice of the run folder: a new one, or the one that the same command left unfinished. And its config.json."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coma.errors import DataError, UsageError, shell_command
from coma.installed.versions import coma_version, library_versions
from coma.runs.lines import read_object
from coma.runs.names import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    DEFAULT_RUNS,
    LOCK_NAME,
    MANIFEST_NAME,
    REPORT_NAME,
    checkpoint_step,
    checkpoints,
)
from coma.runs.read import FORMAT, current_names, latest_checkpoint, other_format
from coma.shards.files import remove_temporaries, without_credentials, write_atomically
from coma.shards.images.options import pixels_in_words
from coma.shards.text import printable
from coma.training.config.options import RunConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.config.schedule import Segment, extend, plan_segment

_LENGTH = ("the number of steps", "the number of warm-up steps", "the number of cooldown steps")
"""What --extend may change of a run's identity."""
_RGB = pixels_in_words(3, "uint8")
_OLDER: dict[str, Any] = {
    "--schedule": "cosine",
    "--crop-scale": 0.2,
    "--flips": "horizontal",
    "--quarter-turns": False,
    "the kind of images": _RGB,
}
"""What the identity of an older run lacks."""
_LIBRARIES = ("torch", "deepspeed", "timm", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and how far the run has come."""

    path: Path
    begun: bool = False
    """The same command has written to it: the run is resumed."""
    finished: bool = False
    segments: tuple[Segment, ...] = ()
    """Schedule of a run that was extended, or is now; empty: the resolved run's."""
    source_names: tuple[str, ...] = ()
    """Names of the data sets when a run on several began; they may have been moved since."""
    beside: str | None = field(default=None, compare=False)
    """For a new run, why the run in the folder of the name before is not resumed."""


def identity(config: RunConfig, resolved: ResolvedRun) -> dict[str, Any]:
    """Return what two commands must have in common to be the same run, so that one resumes the other's.

    The number of machines, the ZeRO stage, logging and evaluation may differ. An extended run has the identity of one
    that was as long from its beginning.
    """
    segment = plan_segment(config, resolved.samples_per_epoch / resolved.batch_size, end=resolved.steps)
    return {
        "format": FORMAT,
        "the kind of images": pixels_in_words(**_kind(resolved.pixels)) if resolved.pixels else _RGB,
        **config.identity(),
        "--schedule": config.schedule,
        "--init's weights": resolved.init_digest,
        **({"the mix of the data sets": _mix(resolved.sources)} if resolved.sources else {}),
        "the data's fingerprint": resolved.fingerprint,
        "the number of steps": resolved.steps,
        "the number of warm-up steps": segment.warmup_steps,
        "the number of cooldown steps": segment.cooldown_steps,
        "the global batch": resolved.batch_size,
        "the precision": resolved.precision,
        "--ds-config's content": resolved.deepspeed.identity(),
    }


def _mix(sources: Sequence[dict[str, Any]]) -> str:
    return ":".join(str(each["weight"]) for each in sources)


def _kind(pixels: dict[str, Any]) -> dict[str, Any]:
    return {name: pixels[name] for name in ("channels", "dtype")}


def choose_run(config: RunConfig, resolved: ResolvedRun) -> RunFolder:
    """Return the folder that a command would use now; reads only. `coma.training.run_lock.take_run` locks it too.

    Raises:
        UsageError: --out holds something else, or a run although --resume is never.
    """
    if config.out is not None:
        if printable(str(config.out)) != str(config.out):
            raise UsageError(f"--out {config.out} is not UTF-8, as TensorBoard and safetensors need it: give another")
        folder = _examine(config.out, config, resolved)
        if isinstance(folder, str):
            raise UsageError(folder)
        if folder.begun and config.resume == "never":
            raise UsageError(f"{config.out} holds a run already, and --resume is never: give another --out")
        return folder
    path, number, beside = DEFAULT_RUNS / config.name, 1, None
    while True:
        folder = _examine(path, config, resolved)
        if isinstance(folder, str):
            reason = re.split(": (?:give|begin anew) ", folder)[0]  # without the way out
            way = f", and --out {path} --extend trains that one for longer" if "--extend" in folder else ""
            beside = f"{reason}: this is a new one{way}"
        elif not folder.begun:
            return replace(folder, beside=beside)
        elif config.resume == "auto" and (not folder.finished or report_is_due(path)):
            return folder
        number += 1
        path = DEFAULT_RUNS / f"{config.name}-{number}"


def _examine(path: Path, config: RunConfig, resolved: ResolvedRun) -> RunFolder | str:
    """Return this command's run at `path`, or why the folder cannot be used for it."""
    if path.exists() and not path.is_dir():
        return f"{path} is a file: give another --out"
    if not path.exists() or all(child.name == LOCK_NAME for child in path.iterdir()):
        return (
            f"--extend: {path} holds no run yet: leave --extend out (--no-extend where a file has it)"
            if config.extend
            else RunFolder(path)
        )
    try:
        content = read_object(path / CONFIG_NAME)
        before = _OLDER | current_names(content["identity"])
        segments = _segments_of(content["resolved"])
        sources = list(content["resolved"].get("sources") or ())
        source_names = tuple(each["name"] for each in sources)
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return f"{path} is not empty and holds no run to resume: give another --out"
    if (number := before.get("format", 1)) != FORMAT:
        return other_format(path, number)
    now = json.loads(json.dumps(identity(config, resolved)))
    differing = sorted((name for name in now if before.get(name) != now[name]), key=_LENGTH.__contains__)
    if differing and not (config.extend and differing[0] in _LENGTH):
        return _refusal(path, differing[0], before, now, _other_sources(sources, resolved.sources))
    steps = before["the number of steps"]
    if config.extend and resolved.steps > steps:
        newest = next(map(checkpoint_step, checkpoints(path)), 0)
        epoch_steps = resolved.samples_per_epoch / resolved.batch_size
        extended = extend(segments, config, epoch_steps, after=newest, end=resolved.steps)
        return RunFolder(path, begun=True, segments=extended, source_names=source_names)
    if config.extend and (differing or len(segments) == 1):  # and not the command that extended it, once more
        return (
            f"--extend takes more steps than {path} has, which are {steps}, and these are {resolved.steps}: give more "
            "--epochs or --steps, or leave --extend out"
        )
    checkpoint = latest_checkpoint(path)
    return RunFolder(
        path,
        begun=True,
        finished=checkpoint is not None and checkpoint_step(checkpoint) >= resolved.steps,
        segments=segments if len(segments) > 1 else (),
        source_names=source_names,
    )


def _segments_of(resolved: dict[str, Any]) -> tuple[Segment, ...]:
    """Return the segments in a config.json; an older one has none."""
    if "segments" not in resolved:
        return (Segment(0, 0, resolved["steps"], resolved["warmup_steps"]),)
    return tuple(Segment(**each) for each in resolved["segments"])


def _other_sources(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str | None:
    """Return what has become of the data sets of a mixture, if their fingerprints tell."""
    there, here = ([each["fingerprint"] for each in sources] for sources in (before, now))
    if there == here or len(there) != len(here):
        return None
    if sorted(there) == sorted(here):
        names = (" ".join(each["name"] for each in sources) for sources in (before, now))
        return "the data sets were {} there and are {} now, in another order".format(*names)
    old, new = next(pair for pair in zip(before, now, strict=True) if pair[0]["fingerprint"] != pair[1]["fingerprint"])
    return (
        f"data set {new['name']} is not the {old['name']} that it began with: its fingerprint was "
        f"{old['fingerprint']} there and is {new['fingerprint']} now"
    )


def _refusal(path: Path, name: str, before: dict[str, Any], now: dict[str, Any], other_sources: str | None) -> str:
    """Return why a run cannot be resumed that differs in one part of its identity, and the ways out."""
    if other_sources is not None and name in ("the mix of the data sets", "the data's fingerprint"):
        return f"{path} holds another run: {other_sources}: give those, or another --out"
    way = ""
    if name == "the global batch":
        way = "--batch-size, or "
    elif name == _LENGTH[0] and now[name] > before[name]:
        way = "--extend to train it for longer, or "
    return f"{path} holds another run: {_difference(name, before.get(name), now[name])}: give {way}another --out"


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _difference(f"{name}, {key}" if "," not in name else f"{name}.{key}", before.get(key), now.get(key))
    return f"{name} was {before!r} there and is {now!r} now"


def report_is_due(run: Path) -> bool:
    """Whether a run has a checkpoint newer than its report: it was killed between writing the two."""
    report, last = run / REPORT_NAME, latest_checkpoint(run)
    return last is not None and (
        not report.exists() or report.stat().st_mtime_ns < (last / MANIFEST_NAME).stat().st_mtime_ns
    )


def clear_temporaries(run: Path) -> None:
    """Remove files that a killed process was writing; only for the holder of the lock."""
    remove_temporaries(run, ("config", "metrics", "ledger", "nonfinite", "trackers"))
    remove_temporaries(run / CHECKPOINTS_NAME)


def write_config(run: Path, config: RunConfig, resolved: ResolvedRun, **facts: Any) -> None:
    """Write RUN/config.json: configuration, resolved run with `facts`, versions, and identity.

    URLs in it lose user info and query, as run folders are shared.
    """
    run.mkdir(parents=True, exist_ok=True)
    content = {
        "config": config.to_json(),
        "resolved": {**resolved.to_json(), **facts},
        "versions": versions(),
        "identity": identity(config, resolved),
    }
    write_atomically(run / CONFIG_NAME, without_credentials(json.dumps(content, indent=2)) + "\n")


def result_versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    from coma.pipeline.decode import DALI_VERSION

    others = {"nvidia-dali": DALI_VERSION, "python": platform.python_version()}
    return {"coma": coma_version(), **library_versions(*_LIBRARIES), **others}


def versions() -> dict[str, str]:
    """Return `result_versions`, the command line, and in a checkout the git revision."""
    result = result_versions()
    result["command"] = shell_command(Path(sys.argv[0]).name, *sys.argv[1:])
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError):  # no git here
        revision = subprocess.run(command, capture_output=True, text=True, check=False)
        if revision.returncode == 0:
            result["revision"] = revision.stdout.strip()
    return result
