"""Consumers in processes of their own, stopped and killed and started again: each sample all the same exactly once."""

import json
import random
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from consumer import OPTIONS, Life, digests

from coma.pipeline import Stream
from coma.shards.manifest import Manifest

BATCH = 12
MOST_EPOCHS = 12


@dataclass(frozen=True)
class Course:
    """What a run without any disturbance takes, sample by sample."""

    samples: list[int]
    digests: list[str]


@pytest.fixture(scope="module")
def undisturbed(manifest: Manifest) -> Course:
    course = Course([], [])
    with Stream(manifest, batch_size=4, **OPTIONS) as stream:
        while len(course.samples) < MOST_EPOCHS * len(manifest) + BATCH:
            batch = next(stream)
            course.samples.extend(batch.samples.tolist())
            course.digests.extend(digests(batch))
    return course


def assert_is_part_of(notes: list[dict[str, Any]], course: Course) -> None:
    """Each step that was noted held what stands at its place in the course."""
    for note in notes:
        at = slice(note["consumed"] - len(note["samples"]), note["consumed"])
        assert note["samples"] == course.samples[at]
        assert note["digests"] == course.digests[at]


def assert_each_once_an_epoch(notes: list[dict[str, Any]], total: int, epochs: int) -> None:
    samples = [sample for note in notes for sample in note["samples"]]
    assert len(samples) >= epochs * total
    for epoch in range(epochs):
        assert sorted(samples[epoch * total : (epoch + 1) * total]) == list(range(total))


def committed(folder: Path, rank: int = 0) -> dict[str, Any]:
    """The stream's state, and the notes of all steps before it."""
    found: dict[str, Any] = json.loads((folder / f"committed-{rank}.json").read_text())
    return found


def diary(folder: Path) -> list[dict[str, Any]]:
    """All steps ever taken, those taken again after a kill too."""
    path = folder / "diary-0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Other numbers of processes


def live(life: Life, world_size: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Be so many processes for a while; return the notes of each step, ranks joined, and the first one's state."""
    Path(life.folder).mkdir()
    ranks = range(world_size)
    processes = [subprocess.Popen(replace(life, rank=rank, world_size=world_size).command()) for rank in ranks]
    assert [process.wait() for process in processes] == [0] * world_size
    found = [committed(Path(life.folder), rank) for rank in ranks]
    joined = []
    for step in zip(*(each["notes"] for each in found), strict=True):
        assert len({note["consumed"] for note in step}) == 1
        assert {len(note["samples"]) for note in step} == {life.batch_size // world_size}
        merged = {name: [value for note in step for value in note[name]] for name in ("samples", "digests")}
        joined.append({"consumed": step[0]["consumed"], **merged})
    return joined, found[0]["stream"]


ONE_TWO_ONE = [(1, 4, 12), (2, 10, 12), (1, 6, 15)]  # processes, steps, batch size
MORE = [(3, 4, 12), (2, 5, 20), (4, 2, 16), (1, 3, 5), (3, 4, 15)]


@pytest.mark.slow
@pytest.mark.parametrize("lives", [ONE_TWO_ONE, MORE])
def test_on_other_numbers_of_processes_in_other_batches_it_is_the_same_run(
    data: Path, manifest: Manifest, undisturbed: Course, tmp_path: Path, lives: list[tuple[int, int, int]]
) -> None:
    steps: list[dict[str, Any]] = []
    state: dict[str, Any] | None = None
    for number, (world_size, count, batch_size) in enumerate(lives):
        until = (int(state["samples"]) if state else 0) + count * batch_size
        life = Life(str(data), str(tmp_path / f"life-{number}"), batch_size, until, state)
        notes, state = live(life, world_size)
        assert len(notes) == count
        steps += notes
    assert_is_part_of(steps, undisturbed)
    assert_each_once_an_epoch(steps, len(manifest), epochs=3)


# Kills


@dataclass(frozen=True)
class Kill:
    """When a consumer dies: so many seconds after something happened."""

    after: str  # "start", "step" (a few), "epoch" (the last step of one), "save" (written, but not renamed)
    delay_s: float

    def wait(self, process: "subprocess.Popen[bytes]", folder: Path, total: int, chance: random.Random) -> None:
        """Return when the process is to be killed, or has ended."""
        taken, steps = len(diary(folder)), chance.randint(1, 6)

        def due() -> bool:
            if self.after == "save":
                return (folder / "committed-0.tmp").exists()
            now = diary(folder)[taken:]
            if self.after == "epoch":
                return any(note["consumed"] % total < BATCH for note in now)
            return len(now) >= (steps if self.after == "step" else 0)

        while not due() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(self.delay_s)


def kills(count: int) -> list[Kill]:
    chance = random.Random(count)
    kinds = {"start": 3.0, "save": 0.02, "step": 0.05, "epoch": 0.03}  # at most so many seconds after
    return [
        Kill(kind, chance.uniform(0, kinds[kind]))
        for kind in [list(kinds)[number % len(kinds)] for number in range(count)]
    ]


@pytest.mark.parametrize(("count", "epochs"), [(3, 3), pytest.param(20, MOST_EPOCHS, marks=pytest.mark.slow)])
def test_killed_again_and_again_no_sample_is_missing_or_comes_twice(
    data: Path, manifest: Manifest, undisturbed: Course, tmp_path: Path, count: int, epochs: int
) -> None:
    total, chance = len(manifest), random.Random(0)
    until = -(-epochs * total // BATCH) * BATCH
    life = Life(str(data), str(tmp_path), BATCH, until, save_every=2, save_s=0.03, step_s=0.03)
    killed = 0
    for kill in kills(count):
        (tmp_path / "committed-0.tmp").unlink(missing_ok=True)  # so that the next one is seen
        process = subprocess.Popen(life.command())
        kill.wait(process, tmp_path, total, chance)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed == count
    assert subprocess.run(life.command(), check=False).returncode == 0

    notes = committed(tmp_path)["notes"]
    assert [note["consumed"] for note in notes] == list(range(BATCH, until + 1, BATCH))
    assert_is_part_of(notes, undisturbed)
    assert_each_once_an_epoch(notes, total, epochs)
    taken = diary(tmp_path)
    assert len(taken) > len(notes)  # steps past the last commit were taken again, and held the same again
    assert_is_part_of(taken, undisturbed)
