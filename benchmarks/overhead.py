"""What the training loop costs beside a bare DeepSpeed loop: a step of each, on the same batches in memory.

    python -m benchmarks.overhead DATA [--model dyvit_tiny] [--batch-size 32] [--steps 10] [--rounds 5]

Both train one network by one engine, in turn, now one first and now the other, on batches that the run's own stream
gave beforehand, with memory kept as `coma pretrain` keeps it. The bare loop is `engine(images, units)`,
`engine.backward(loss)`, `engine.step()`. coma's is `coma.training.loop.Session` as `coma pretrain` runs it, with all
that it writes down; only its stream is replaced. A step lasts from one batch asked for to the next; evaluating,
painting and saving at a round's end lie outside, and so does the first step of a round, in which coma counts
multiply-adds, once a session. Given are medians, of wall time and of this process's CPU time, which a busy machine
disturbs less, and what coma's loop adds: in each round the difference of the two medians, of which the median, the
least and the most. The bar: at most 2% more.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

from coma.measure import keep_freed_memory
from coma.pipeline import Batch
from coma.training import PretrainConfig
from coma.training.processes.signals import StopRequests
from coma.training.processes.world import find_place, joined

BAR = 1.02
HELD = 4
"""Batches that are gone through again and again."""
_ENDLESS = 1_000_000
"""Steps of the run, of which a round takes a few: no evaluation and no checkpoint falls due in one."""
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Held:
    """Stand-in for a stream: gives the batches again and again, and notes when each was asked for."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = itertools.cycle(batches)
        self._asked: list[dict[str, float]] = []

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Note the time and give a batch."""
        self._asked.append({name: clock() for name, clock in _CLOCKS.items()})
        return next(self._batches)

    def steps_s(self) -> dict[str, list[float]]:
        """Return the length of each step but the first and the last, by each clock."""
        return {
            name: [after[name] - before[name] for before, after in itertools.pairwise(self._asked[1:])]
            for name in _CLOCKS
        }


def measure(config: PretrainConfig, steps: int, rounds: int) -> dict[str, Any]:
    """Take `rounds` times `steps` steps in either loop, after one round of each that does not count."""
    config = dataclasses.replace(config, steps=_ENDLESS, save_every=_ENDLESS, stop_after=steps + 2)
    times: dict[str, list[dict[str, list[float]]]] = {"bare": [], "coma": []}
    """Of each round the length of its steps, by each clock."""
    with StopRequests() as stop, joined(find_place({})) as world:
        from coma.training import loop  # imports DeepSpeed, which looks at the environment
        from coma.training.engine.checkpoint import TrainingState
        from coma.training.engine.engine import dispose, make_engine
        from coma.training.processes.watchdog import Watchdog
        from coma.training.run_folder import choose_run, write_config
        from coma.training.setup import open_stream, prepare

        if world.device.type == "cpu":
            keep_freed_memory()
        prepared = prepare(config, world)
        resolved = prepared.resolved
        run = choose_run(config, resolved).path
        write_config(run, config, resolved, **prepared.facts)
        state = TrainingState(
            step=1,
            fingerprint=resolved.fingerprint,
            seed=resolved.seed,
            samples=0,
            world_size=resolved.world_size,
        )
        with open_stream(prepared, world, run, state.samples) as stream:
            batches = [next(stream) for _ in range(HELD)]
        with Watchdog(run, world, config.stuck_after) as watchdog:
            engine = make_engine(prepared.task.model, resolved)
            try:
                for number in range(rounds + 1):
                    for name in ("bare", "coma") if number % 2 else ("coma", "bare"):
                        held = Held(batches)
                        if name == "bare":
                            take_bare_steps(engine, held, steps + 2)
                        else:
                            with patch.object(loop, "open_stream", lambda *_, h=held: contextlib.nullcontext(h)):
                                session = loop.Session(prepared, run, engine, world, state, watchdog, stop)
                                session.run_steps()
                            state = dataclasses.replace(state, step=state.step + steps + 2)
                        if number > 0:
                            times[name].append(held.steps_s())
            finally:
                dispose(engine)
        device = prepared.facts["device_name"]
    medians = {
        name: {clock: statistics.median(chain.from_iterable(one[clock] for one in taken)) for clock in _CLOCKS}
        for name, taken in times.items()
    }
    added = {
        clock: [
            statistics.median(coma[clock]) - statistics.median(bare[clock])
            for bare, coma in zip(times["bare"], times["coma"], strict=True)
        ]
        for clock in _CLOCKS
    }
    return {
        "model": config.model,
        "device": device,
        "batch_size": resolved.batch_size,
        "image_size": config.image_size,
        "ds_config": resolved.ds_config,
        "steps": steps * rounds,
        "step_s": medians,
        "added_s": added,
        "ratio": {clock: medians["coma"][clock] / medians["bare"][clock] for clock in _CLOCKS},
        "bar": BAR,
    }


def take_bare_steps(engine: Any, batches: Held, steps: int) -> None:
    """Train as DeepSpeed's own examples do."""
    for batch in itertools.islice(batches, steps):
        loss = engine(batch.images, batch.units)
        engine.backward(loss)
        engine.step()


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']}, {result['batch_size']} images of {result['image_size']} px, "
        f"{result['ds_config']}, {result['device']}",
        f"  {'step, median of ' + str(result['steps']):<24}{'wall ms':>12}{'CPU ms':>12}",
    ]
    for name, times in result["step_s"].items():
        lines.append(f"  {name:<24}{times['wall'] * 1e3:>12.2f}{times['cpu'] * 1e3:>12.2f}")
    for name, pick in (("coma adds", statistics.median), ("  at least", min), ("  at most", max)):
        wall, cpu = (pick(result["added_s"][clock]) * 1e3 for clock in ("wall", "cpu"))
        lines.append(f"  {name:<24}{wall:>12.2f}{cpu:>12.2f}")
    ratio = result["ratio"]
    lines.append(f"  {f'ratio (bar {BAR})':<24}{ratio['wall']:>12.4f}{ratio['cpu']:>12.4f}")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What the training loop costs beside a bare DeepSpeed loop.")
    parser.add_argument("data", type=Path, help="a sharded data set")
    parser.add_argument("--model", default="dyvit_tiny")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--patch-size", type=int, help="pixels (default: the model's)")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step (default 32)")
    parser.add_argument("--ds-config", default="zero1")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round (default 10)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop, in turn (default 5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coma-overhead-") as scratch:
        config = PretrainConfig(
            data=given.data,
            out=Path(scratch) / "run",
            model=given.model,
            image_size=given.image_size,
            patch_size=given.patch_size,
            batch_size=given.batch_size,
            ds_config=given.ds_config,
            keep_last=1,
        )
        result = measure(config, given.steps, given.rounds)
    print(_table(result))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
