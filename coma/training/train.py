"""Training from start to end: prepare a run, lock its folder, resume it, take its steps, write its report."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from coma.measure import keep_freed_memory
from coma.runs.lines import cut_lines
from coma.runs.names import LEDGER_NAME, NONFINITE_NAME, STOP_NAME, checkpoint_step
from coma.runs.report import write_report
from coma.training.config.options import RunConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.engine import checkpoint
from coma.training.engine.checkpoint import TrainingState
from coma.training.engine.engine import dispose, make_engine
from coma.training.logs import messages
from coma.training.logs.metrics import Watcher
from coma.training.logs.result import run_result
from coma.training.logs.trackers import check_installed
from coma.training.loop import Session
from coma.training.memory.fit import fit
from coma.training.processes.signals import StopRequests
from coma.training.processes.watchdog import Watchdog
from coma.training.processes.world import World
from coma.training.run_folder import choose_run, clear_temporaries, report_is_due, write_config
from coma.training.run_lock import RunLock, take_run
from coma.training.setup import prepare

logger = logging.getLogger(__name__)


def train(
    config: RunConfig, world: World, stop: StopRequests, lock: RunLock, watch: Watcher | None = None
) -> dict[str, Any]:
    """Train in a process group that is already joined; see `coma.training`."""
    started_s = time.monotonic()
    if world.device.type == "cpu":
        keep_freed_memory()
    prepared = prepare(config, world)
    resolved = prepared.resolved
    with world.raise_on_rank0():
        check_installed(config.trackers)
    folder = world.run_on_rank0(
        lambda: take_run(lambda: choose_run(config, resolved), lock, stop_asked=lambda: stop.preempted)
    )
    if folder.segments:
        prepared = prepared.extended(folder.segments)
        resolved = prepared.resolved
    if folder.source_names:
        prepared = prepared.with_source_names(folder.source_names)
        resolved = prepared.resolved
    run = folder.path
    if folder.finished:
        if not world.is_rank0:
            return {}
        logger.info("%s is finished already: %d steps", run, resolved.steps)
        if report_is_due(run):
            write_report(run)
        return run_result(run, resolved, elapsed_s=0.0, images_per_s=None)

    try:
        prepared = fit(prepared, world)
    except BaseException:
        lock.abandon()  # a run that cannot begin leaves no folder
        raise
    resolved = prepared.resolved
    if prepared.task.lacks_weights and checkpoint.newest_whole(run, world) is None:
        world.run_on_all(prepared.task.give_start)
    if world.is_rank0:  # which holds the lock
        clear_temporaries(run)
        write_config(run, config, resolved, **prepared.facts)
        stop.forget(run / STOP_NAME)
        stop.look_for([run / STOP_NAME])
    with Watchdog(run, world, config.stuck_after) as watchdog:
        task = prepared.task
        groups = task.parameter_groups(config.weight_decay)
        engine = make_engine(task.model, resolved, groups=groups, compile_model=config.compile)
        try:
            state = resume(engine, world, run, resolved)
            if world.is_rank0:
                messages.log_start(prepared, folder, state.step)
            session = Session(prepared, run, engine, world, state, watchdog, stop, watch)
            session.run_steps()
        finally:
            dispose(engine)

    if not world.is_rank0:
        return {}
    write_report(run)
    elapsed_s = time.monotonic() - started_s
    result = run_result(run, resolved, elapsed_s=elapsed_s, images_per_s=session.pace.images_per_s)
    messages.log_end(result, prepared)
    return result


def resume(engine: Any, world: World, run: Path, resolved: ResolvedRun) -> TrainingState:
    """Load the newest checkpoint that is whole, if there is one, and cut logs of later steps; collective."""
    state = TrainingState(
        step=0, fingerprint=resolved.fingerprint, seed=resolved.seed, samples=0, world_size=resolved.world_size
    )
    folder = checkpoint.newest_whole(run, world)
    if folder is not None:
        state = checkpoint.load(engine, world, folder)
        assert state.step == checkpoint_step(folder)
    if world.is_rank0:  # metrics.jsonl is cut by MetricsLog
        for name in (LEDGER_NAME, NONFINITE_NAME):
            cut_lines(run / name, state.step)
    return state
