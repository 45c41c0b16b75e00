"""Training: from a configuration to a trained network, step by step.

Everything that a step sees is a function of the data, the seed and the step, so that a run that was stopped
and goes on is the run that was not.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from coma.errors import DivergedError, Preempted
from coma.measure import keep_freed_memory
from coma.pipeline import Stream
from coma.pipeline.order import digest, digest_limbs
from coma.runs.read import CHECKPOINTS_NAME, checkpoint_step
from coma.runs.report import write_report
from coma.shards.files import remove_temporaries
from coma.shards.manifest import Manifest
from coma.training.config.options import RunConfig
from coma.training.config.resolve import ResolvedRun
from coma.training.config.schedule import learning_rate
from coma.training.engine import checkpoint
from coma.training.engine.checkpoint import TrainingState
from coma.training.engine.ema import ExponentialMovingAverage
from coma.training.engine.engine import (
    dispose,
    full_weights,
    make_engine,
    optimizer_step,
    set_learning_rate,
)
from coma.training.logs import messages
from coma.training.logs.metrics import (
    MetricsLog,
    Pace,
    Progress,
    cut_after,
    was_evaluated,
)
from coma.training.logs.trackers import Tracker, check_installed, open_trackers
from coma.training.logs.usage import Usage
from coma.training.processes.signals import STOP_NAME, StopRequests
from coma.training.processes.watchdog import Watchdog
from coma.training.processes.world import World
from coma.training.run_folder import LEDGER_NAME, choose_run, report_is_due, write_config
from coma.training.run_lock import RunLock, take_run
from coma.training.setup import Prepared, prepare, summarise, tell
from coma.training.tasks.scorer import evaluate, is_due
from coma.training.tasks.task import Scorer

logger = logging.getLogger(__name__)

NONFINITE_NAME = "nonfinite.jsonl"
NONFINITE_LIMIT = 10
"""Steps with a loss or gradient that is not finite, after which a run is given up."""

Watcher = Callable[[Progress], None]


def train(
    config: RunConfig,
    world: World,
    stop: StopRequests,
    lock: RunLock,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Train in a group of processes that is already joined; see `coma.training`."""
    started_s = time.monotonic()
    if world.device.type == "cpu":
        keep_freed_memory()
    prepared = prepare(config, world)
    with world.said_once():
        check_installed(config.trackers)
    resolved = prepared.resolved
    folder = world.agree(
        lambda: take_run(lambda: choose_run(config, resolved), lock, stop_asked=lambda: stop.preempted)
    )
    prepared = dataclasses.replace(prepared, folder=folder)
    run = folder.path
    if folder.finished:
        if world.leads:
            logger.info("%s is finished already: %d steps", run, resolved.steps)
            if report_is_due(run):
                write_report(run)
        return summarise(run, resolved, elapsed_s=0.0, images_per_s=None) if world.leads else {}

    if world.leads:
        remove_temporaries(run, ("config", "metrics", "ledger", "nonfinite", "trackers"))  # the lock is ours
        remove_temporaries(run / CHECKPOINTS_NAME)
        write_config(run, config, resolved, **prepared.facts)
        stop.forget(run / STOP_NAME)
        stop.look_for([run / STOP_NAME])
    with Watchdog(run, world, config.stuck_after) as watchdog:
        task = prepared.task
        groups = task.groups(config.weight_decay)
        engine = make_engine(task.model, resolved, groups=groups, compile_model=config.compile)
        try:
            state = resume(engine, world, run, resolved)
            if world.leads:
                tell(prepared, state.step)
            pace = take_steps(prepared, engine, world, state, watch, stop, watchdog)
        finally:
            dispose(engine)

    if not world.leads:
        return {}
    write_report(run)
    result = summarise(run, resolved, elapsed_s=time.monotonic() - started_s, images_per_s=pace.images_per_s)
    for line in messages.closing(result):
        logger.info("%s", line)
    return result


def resume(engine: Any, world: World, run: Path, resolved: ResolvedRun) -> TrainingState:
    """Go on from the newest whole checkpoint, or from nothing; cut what was logged past it; collective."""
    state = TrainingState(
        step=0,
        fingerprint=resolved.fingerprint,
        seed=resolved.seed,
        samples=0,
        world_size=resolved.world_size,
    )
    folder = checkpoint.newest_whole(run, world)
    if folder is not None:
        state = checkpoint.load(engine, world, folder)
        assert state.step == checkpoint_step(folder)
    if world.leads:
        for name in (LEDGER_NAME, NONFINITE_NAME):
            cut_after(run / name, state.step)
    return state


def take_steps(
    prepared: Prepared,
    engine: Any,
    world: World,
    state: TrainingState,
    watch: Watcher | None,
    stop: StopRequests,
    watchdog: Watchdog,
) -> Pace:
    """Take the steps that are left, or as many as this session may; collective."""
    config, resolved, task, run = prepared.config, prepared.resolved, prepared.task, prepared.folder.path
    last = min(resolved.steps, state.step + (config.stop_after or resolved.steps))
    paint_after = task.paints_after(resolved.steps)
    pace = Pace(resolved.steps, resolved.batch_size)
    trackers: list[Tracker] = []
    world.agree(lambda: trackers.extend(open_trackers(config, run)))  # which may fail, on rank 0 alone
    log = MetricsLog(run, state.step, trackers) if world.leads else None
    painter = task.painter(run, world.device, decoding(config)) if world.leads else None
    usage = Usage(task.build, world.device, prepared.facts["device_name"], resolved.precision)
    scorer = make_scorer(prepared, world)
    average = ExponentialMovingAverage(engine, task.average_decay) if task.average_decay else None

    def ends_epochs(step: int) -> bool:
        return resolved.ends_epochs(step, config.keep_every_epochs)

    kept = checkpoint.Retention(config.keep_last, ends_epochs)

    def keep(saving: bool, painting: bool, evaluating: bool = False) -> None:
        """Evaluate, paint and save from one collection of the weights, which is costly."""
        watchdog.enter("evaluating" if evaluating else "saving", state.step)
        wanted = saving or painting or evaluating
        weights = full_weights(engine) if wanted else {}
        averaged = average.gather(weights, world) if wanted and average else None
        if evaluating:  # before saving: what a run goes on from has been evaluated
            assert scorer
            judged = weights if averaged is None else averaged
            scores = evaluate(
                scorer, world, judged, state.step, lambda: watchdog.enter("evaluating", state.step)
            )
            if log:
                log.write(scores, "evaluation")
            watchdog.enter("saving", state.step)
        if painting and painter:
            painter.paint(weights, state.step)
        if saving:  # last: a run whose last step is saved has all the rest
            checkpoint.save(engine, world, run, state, weights, kept, averaged)

    # A run that was asked to stop when it should have been evaluated did not take the time.
    owed = scorer is not None and state.step > 0 and is_due(state.step, resolved, config.evaluate_every)
    owed = owed and world.agree(lambda: not was_evaluated(run, state.step))
    keep(saving=False, painting=state.step == 0, evaluating=owed)
    stop.steps_begin()
    with open_stream(prepared, world, state) as stream:
        while state.step < last:
            began_s = time.perf_counter()
            step = state.step + 1
            watchdog.enter("data", step)
            batch = next(stream)
            watchdog.enter("forward and backward", step)
            data_wait_s = time.perf_counter() - began_s
            lr = learning_rate(
                step, peak=resolved.peak_lr, warmup_steps=resolved.warmup_steps, steps=resolved.steps
            )
            set_learning_rate(engine, lr)
            seed_step(config.seed, step, world.rank)

            inputs = task.inputs(batch)
            losses, grad_norm, applied = train_on(engine, inputs, resolved.micro_batch_size)
            if average and applied:
                average.update(step)

            parts = micro_batches(len(batch.images), resolved.micro_batch_size)
            culprits = [part for part, loss in zip(parts, losses, strict=True) if not math.isfinite(loss)]
            watchdog.enter("summing up", step)
            loss, nonfinite, preempted, interrupted, *limbs = world.sum(
                [
                    sum(losses) / len(losses),
                    len(culprits),
                    stop.preempted,
                    stop.interrupted,
                    *digest_limbs(batch.samples.tolist()),
                ]
            )
            # In fp16 DeepSpeed skips steps to find its loss scale: nothing is wrong with those.
            failed = nonfinite > 0 or not (applied or resolved.precision == "fp16")
            state = dataclasses.replace(
                state,
                step=step,
                samples=state.samples + resolved.batch_size,
                nonfinite_steps=state.nonfinite_steps + failed,
            )
            step_s = time.perf_counter() - began_s
            line = {
                "step": step,
                "epoch": state.samples / resolved.samples_per_epoch,
                "samples": state.samples,
                "loss": loss / world.size,
                "lr": lr,
                "grad_norm": grad_norm,
                "step_s": step_s,
                "data_wait_s": data_wait_s,
                "images_per_s": resolved.batch_size / step_s,
                "image_size": batch.images.shape[-1],
                "batch_digest": digest(limbs),
                **({} if applied else {"skipped": True}),
            }
            if log:
                line |= usage.figures(inputs, step_s)
                log.write(line)
                report(pace.take(line), pace, watch)
            if failed:
                ids = chain.from_iterable(batch.samples[part].tolist() for part in culprits)
                give_up_or_go_on(state, world, run, prepared.manifest, list(ids))

            leaving = bool(preempted or interrupted or step == last)
            evaluating = scorer is not None and is_due(step, resolved, config.evaluate_every)
            evaluating = evaluating and not (step < resolved.steps and (preempted or interrupted))
            saving = leaving or step % resolved.save_every == 0 or ends_epochs(step)
            keep(saving, painting=step in paint_after, evaluating=evaluating)
            if step < resolved.steps and (preempted or interrupted):
                say_goodbye(world, run, state, interrupted=bool(interrupted))
    if log:
        log.close()
    return pace


def open_stream(prepared: Prepared, world: World, state: TrainingState) -> Stream:
    """Return this rank's stream of batches from where the run stands."""
    return Stream(
        prepared.manifest,
        batch_size=prepared.resolved.batch_size,
        seed=prepared.config.seed,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        start_samples=state.samples,
        ledger=prepared.folder.path / LEDGER_NAME,
        **prepared.stream_options,
        **decoding(prepared.config),
    )


def decoding(config: RunConfig) -> dict[str, Any]:
    """Return a stream's arguments that say how images are decoded."""
    workers = {} if config.workers is None else {"workers": config.workers}
    return {"decode": config.decode, **workers}


def make_scorer(prepared: Prepared, world: World) -> Scorer | None:
    """Return what scores the network between epochs, if that is wanted; every rank comes to the same."""
    with world.said_once():
        return prepared.task.scorer(world.device, decoding(prepared.config))


def train_on(engine: Any, inputs: Sequence[Tensor], micro_batch_size: int) -> tuple[list[float], float, bool]:
    """Take one optimizer step on this rank's part of a batch, what the network takes of it; collective.

    Returns:
        The loss of each micro-batch here, the global norm of the gradient before clipping, and whether the
        step was applied: it is not if that norm is not finite.
    """
    losses: list[Tensor] = []
    for part in micro_batches(len(inputs[0]), micro_batch_size):
        if losses:
            engine.step()  # counts a micro-batch; only the last one's updates the weights
        loss = engine(*(rows[part] for rows in inputs))
        engine.backward(loss)
        losses.append(loss.detach())
    grad_norm, applied = optimizer_step(engine)
    return torch.stack(losses).tolist(), grad_norm, applied


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what is drawn in a step (dropped paths, mixed images) a function of seed, step and rank."""
    number = xxhash.xxh3_64_intdigest(f"{seed}/{step}/{rank}".encode())
    torch.manual_seed(number)
    np.random.seed(number % (1 << 32))
    random.seed(number)


def micro_batches(images: int, size: int) -> list[slice]:
    """Cut a rank's part of a batch into consecutive micro-batches."""
    return [slice(start, start + size) for start in range(0, images, size)]


def report(progress: Progress, pace: Pace, watch: Watcher | None) -> None:
    """Tell whoever watches live, or else leave a line in the log when one is due."""
    if watch is not None:
        watch(progress)
    elif pace.line_is_due(progress.step):
        logger.info("%s", progress)


def give_up_or_go_on(
    state: TrainingState, world: World, run: Path, manifest: Manifest, culprits: Sequence[int]
) -> None:
    """Write down which samples a loss that is not finite came from, and stop at the limit; collective.

    Raises:
        DivergedError: this was the last such step that is put up with.
    """
    samples = sorted(chain.from_iterable(world.gather(list(culprits))))
    keys = manifest.keys(samples)
    what = "the loss" if samples else "the gradient"
    if world.leads:
        with (run / NONFINITE_NAME).open("a") as file:
            file.write(
                json.dumps({"step": state.step, "what": what, "samples": samples, "keys": keys}) + "\n"
            )
        logger.warning(
            "step %d skipped: %s is not finite (%d of %d)",
            state.step,
            what,
            state.nonfinite_steps,
            NONFINITE_LIMIT,
        )
    if state.nonfinite_steps >= NONFINITE_LIMIT:
        with world.said_once():
            named = (
                f", with the samples {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}" if keys else ""
            )
            raise DivergedError(
                f"{state.nonfinite_steps} steps without a finite loss or gradient, the last at step "
                f"{state.step}{named}: "
                f"see {run / NONFINITE_NAME}; lower --base-lr, or set those samples aside"
            )


def say_goodbye(world: World, run: Path, state: TrainingState, *, interrupted: bool) -> None:
    """Leave before the end, with everything saved."""
    if world.leads:
        (run / STOP_NAME).unlink(missing_ok=True)
    if interrupted:
        if world.leads:
            logger.info("saved step %d in %s: the same command goes on from there", state.step, run)
        raise KeyboardInterrupt
    with world.said_once():
        raise Preempted(
            f"asked to stop: saved step {state.step} in {run}; the same command goes on from there"
        )
