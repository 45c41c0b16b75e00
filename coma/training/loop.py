"""The training loop: what happens in a step, and what happens between two steps.

What a step sees is a function of the data, the seed and the number of the step, so a run that was stopped and
resumed is the run that was never stopped, bit for bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coma.errors import Preempted
from coma.pipeline import Batch
from coma.pipeline.order import digest, digest_limbs
from coma.runs.names import STOP_NAME
from coma.training.config.schedule import rate_at
from coma.training.engine import checkpoint
from coma.training.engine.checkpoint import TrainingState
from coma.training.engine.ema import ExponentialMovingAverage
from coma.training.engine.engine import full_weights, set_learning_rate
from coma.training.engine.train_step import seed_step, train_step
from coma.training.logs.by_source import BySource
from coma.training.logs.metrics import MetricsLog, Pace, Watcher
from coma.training.logs.trackers import Tracker, open_trackers
from coma.training.logs.usage import Usage
from coma.training.memory.shortage import naming_lack_of_memory
from coma.training.nonfinite import note_nonfinite, suspect_samples
from coma.training.processes.signals import StopRequests
from coma.training.processes.watchdog import Watchdog
from coma.training.processes.world import World
from coma.training.setup import Prepared, open_stream
from coma.training.tasks.scorer import evaluate, is_due, was_evaluated

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step leaves for `Session.after_step`; the same on all ranks, but for `inputs` and `suspects`."""

    line: dict[str, Any]
    """Line of metrics.jsonl."""
    inputs: tuple[Tensor, ...]
    """What the network took on this rank."""
    suspects: list[int]
    """Ids of this rank's samples whose loss may not have been finite."""
    failed: bool
    """The loss or the gradient was not finite."""
    preempted: bool
    interrupted: bool
    """Some rank was asked to stop: by SIGTERM, SIGUSR1 or a file; or by Ctrl-C."""


class Session:
    """The steps that a process group takes, from where the run stands until it ends or is asked to stop.

    After each step these follow, on all ranks in this order:

        log         metrics.jsonl, TensorBoard, trackers and console
        non-finite  the samples of a loss that is not finite are noted; too many such steps end the run
        evaluate    before saving, so that what a run resumes from has been evaluated
        preview
        save        last, so that a run whose last step is saved has everything else
        leave       if the run was asked to stop

    Evaluation, preview and checkpoint share one collection of the weights from all ranks, which is costly. All public
    methods, the constructor included, are collective.
    """

    def __init__(
        self,
        prepared: Prepared,
        run: Path,
        engine: Any,
        world: World,
        state: TrainingState,
        watchdog: Watchdog,
        stop: StopRequests,
        watch: Watcher | None = None,
    ) -> None:
        config, resolved, task = prepared.config, prepared.resolved, prepared.task
        self.prepared, self.config, self.resolved, self.task = prepared, config, resolved, task
        self.run, self.engine, self.world, self.state = run, engine, world, state
        self.watchdog, self.stop, self.watch = watchdog, stop, watch
        self.last_step = min(resolved.steps, state.step + (config.stop_after or resolved.steps))
        self.preview_steps = task.preview_steps(resolved.steps)
        self.by_source = BySource(prepared.manifest)
        self.pace = Pace(resolved.steps, resolved.batch_size)
        self.previewer = task.previewer(run, world.device, prepared.decoding) if world.is_rank0 else None
        self.usage = Usage(task.build, world.device, prepared.facts["device_name"], resolved.precision)
        with world.raise_on_rank0():
            self.scorer = task.scorer(world.device, prepared.decoding)
        self.average = ExponentialMovingAverage(engine, task.ema_decay) if task.ema_decay else None
        self.kept = checkpoint.Retention(config.keep_last, self._is_milestone)
        trackers: list[Tracker] = []  # filled rather than returned, as results are sent to all ranks
        world.run_on_rank0(lambda: trackers.extend(open_trackers(config, run)))
        self.metrics = MetricsLog(run, state.step, trackers) if world.is_rank0 else None  # `run_steps` closes it

    def run_steps(self) -> None:
        """Take the steps that are left, or as many as --stop-after allows; collective.

        Raises:
            DivergedError, Preempted, KeyboardInterrupt: see `coma.training.pretrain`.
        """
        failed = True
        try:
            self._before_first_step()
            with open_stream(self.prepared, self.world, self.run, self.state.samples) as stream:
                while self.state.step < self.last_step:
                    self.after_step(self.step(stream))
            failed = False
        except (Preempted, KeyboardInterrupt):
            failed = False
            raise
        finally:
            if self.metrics:
                self.metrics.close(failed=failed)

    def _before_first_step(self) -> None:
        """Draw the initial network, and evaluate it if it has inherited weights.

        A run that was asked to stop, and did not take the time to evaluate, does so now.
        """
        step = self.state.step
        owed = self._evaluation_is_due(step) if step else self._evaluates and self.task.scores_start
        owed = owed and self.world.run_on_rank0(lambda: not was_evaluated(self.run, step))
        self._use_weights(evaluating=owed, previewing=step == 0, saving=False)
        self.stop.steps_begin()

    def step(self, stream: Iterator[Batch]) -> StepResult:
        """Take one optimizer step on the next batch; collective."""
        resolved, world = self.resolved, self.world
        began_s = time.perf_counter()
        step = self.state.step + 1
        self.watchdog.enter("data", step)
        with naming_lack_of_memory(self.config, resolved, world, step):
            batch = next(stream)
            self.watchdog.enter("forward and backward", step)
            data_wait_s = time.perf_counter() - began_s
            lr = rate_at(step, resolved.peak_lr, resolved.segments)
            set_learning_rate(self.engine, lr)
            seed_step(self.config.seed, step, world.rank)
            inputs = self.task.inputs(batch)
            of_images: list[Tensor] = []

            def keep_losses() -> None:
                if (of_each := self.task.image_losses()) is not None:
                    of_images.append(of_each)

            losses, grad_norm, applied = train_step(self.engine, inputs, resolved.micro_batch_size, keep_losses)
            if self.average and applied:
                self.average.update(step)

        suspects = suspect_samples(batch.samples, losses, resolved.micro_batch_size)
        self.watchdog.enter("summing up", step)
        limbs = digest_limbs(batch.samples.tolist())
        of_sources = self.by_source.sums(batch.samples, torch.cat(of_images)) if self.by_source else []
        loss, nonfinite, preempted, interrupted, *others = world.sum(
            [
                sum(losses) / len(losses),
                len(suspects),
                self.stop.preempted,
                self.stop.interrupted,
                *limbs,
                *of_sources,
            ]
        )
        limbs, of_sources = others[: len(limbs)], others[len(limbs) :]
        # In fp16 DeepSpeed skips steps to find its loss scale, which is no failure.
        failed = nonfinite > 0 or not (applied or resolved.precision == "fp16")
        self.state = replace(
            self.state,
            step=step,
            samples=self.state.samples + resolved.batch_size,
            nonfinite_steps=self.state.nonfinite_steps + failed,
        )
        step_s = time.perf_counter() - began_s
        line = {
            "step": step,
            "epoch": self.state.samples / resolved.samples_per_epoch,
            "samples": self.state.samples,
            "loss": loss / world.size,
            "lr": lr,
            "grad_norm": grad_norm,
            "step_s": step_s,
            "data_wait_s": data_wait_s,
            "images_per_s": resolved.batch_size / step_s,
            "image_size": batch.images.shape[-1],
            "batch_digest": digest(limbs),
            **({} if applied else {"skipped": True}),
            **self.by_source.figures(of_sources, self.state.samples),
        }
        return StepResult(line, inputs, suspects, failed, bool(preempted), bool(interrupted))

    def after_step(self, result: StepResult) -> None:
        """Log, evaluate, preview, save and leave, as far as each is due after this step; collective."""
        step, resolved = self.state.step, self.resolved
        stop_asked = result.preempted or result.interrupted
        leaving = stop_asked and step < resolved.steps
        self._log(result)
        if result.failed:
            note_nonfinite(self.state, self.world, self.run, self.prepared.manifest, result.suspects)
        self._use_weights(
            evaluating=self._evaluation_is_due(step) and not leaving,  # made up for when the run is resumed
            previewing=step in self.preview_steps,
            saving=stop_asked or step == self.last_step or step % resolved.save_every == 0 or self._is_milestone(step),
        )
        if leaving:
            self._leave(interrupted=result.interrupted)

    @property
    def _evaluates(self) -> bool:
        return self.scorer is not None and self.config.evaluate_every is not None

    def _evaluation_is_due(self, step: int) -> bool:
        return self.scorer is not None and is_due(step, self.resolved, self.config.evaluate_every)

    def _is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good."""
        return self.resolved.ends_epochs(step, self.config.keep_every_epochs)

    def _log(self, result: StepResult) -> None:
        if self.metrics:
            line = result.line | self.usage.figures(result.inputs, result.line["step_s"])
            self.metrics.write(line)
            self.pace.show(self.pace.update(line), self.watch)

    def _use_weights(self, *, evaluating: bool, previewing: bool, saving: bool) -> None:
        """Collect the weights, and their average, for what is to be done with them."""
        step, world = self.state.step, self.world
        self.watchdog.enter("evaluating" if evaluating else "saving", step)
        if not (evaluating or previewing or saving):
            return
        weights = full_weights(self.engine)
        averaged = self.average.gather(weights, world) if self.average else None
        if evaluating:
            assert self.scorer
            scored = weights if averaged is None else averaged
            scores = evaluate(self.scorer, world, scored, step, lambda: self.watchdog.enter("evaluating", step))
            if self.metrics:
                self.metrics.write(scores, "evaluation")
            self.watchdog.enter("saving", step)
        if previewing and self.previewer:
            self.previewer.preview(weights, step)
        if saving:
            checkpoint.save(self.engine, world, self.run, self.state, weights, self.kept, averaged)

    def _leave(self, *, interrupted: bool) -> None:
        """End a run that was asked to stop, after its checkpoint was saved."""
        if self.world.is_rank0:
            (self.run / STOP_NAME).unlink(missing_ok=True)
        saved = f"saved step {self.state.step} in {self.run}"
        if interrupted:
            if self.world.is_rank0:
                logger.info("%s: the same command resumes from there", saved)
            raise KeyboardInterrupt
        with self.world.raise_on_rank0():
            raise Preempted(f"asked to stop: {saved}; the same command resumes from there")
