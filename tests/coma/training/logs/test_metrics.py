from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.pipeline.order import digest, digest_limbs
from coma.training.logs.metrics import MetricsLog, Pace, Progress, duration


@given(samples=st.lists(st.integers(0, 2**40), max_size=40), ranks=st.integers(1, 5), seed=st.integers())
def test_the_digest_is_of_the_whole_batch_however_it_is_dealt(samples: list[int], ranks: int, seed: int) -> None:
    shuffled = random.Random(seed).sample(samples, len(samples))
    parts = [digest_limbs(shuffled[rank::ranks]) for rank in range(ranks)]
    assert digest([sum(limbs) for limbs in zip(*parts, strict=True)]) == digest(digest_limbs(samples))


@given(samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=40), place=st.integers(0, 39))
def test_another_sample_gives_another_digest(samples: list[int], place: int) -> None:
    other = list(samples)
    other[place % len(other)] += 1
    assert digest(digest_limbs(other)) != digest(digest_limbs(samples))


def test_lines_are_json_even_where_numbers_are_not(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write({"step": 1, "loss": float("nan"), "lr": 0.5, "grad_norm": float("inf"), "batch_digest": "0f"})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {"step": 1, "loss": None, "lr": 0.5, "grad_norm": None, "batch_digest": "0f"}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_pace_is_the_recent_one() -> None:
    pace = Pace(1000, batch_size=8)
    assert pace.images_per_s is None
    line = {"step": 1, "loss": 1.0, "lr": 0.1, "step_s": 2.0, "data_wait_s": 0.5}
    first = pace.update(line)
    assert first == Progress(1, 1000, 1.0, 0.1, images_per_s=4.0, data_wait=0.25, eta_s=1998.0)
    assert "step 1/1000" in str(first)
    for step in range(2, 200):
        last = pace.update({**line, "step": step, "step_s": 1.0, "data_wait_s": 0.0})
    assert last.images_per_s == pytest.approx(8.0, rel=0.02)
    assert last.data_wait < 0.01


def test_the_epochs_of_data_sets_are_in_lines_that_fit() -> None:
    line = {"step": 1, "loss": 1.0, "lr": 0.1, "step_s": 2.0, "data_wait_s": 0.5}
    epochs = {f"source/{'photographs' * (number % 3)}-{number}/epochs": 1234.5678 / 7**number for number in range(8)}
    shown = str(Pace(1000, batch_size=8).update({**line, **epochs, "source/-0/samples": 3}))
    assert max(map(len, shown.splitlines())) <= 80
    assert " ".join(shown.split()).endswith(", photographs-7 0.001499")
    assert "epochs    -0 1235, photographs-1 176.4," in shown


def test_lines_are_few_but_first_and_last_are_among_them() -> None:
    pace, due = Pace(1000, batch_size=8), []
    for step in range(1, 1001):
        pace.update({"step": step, "loss": 1.0, "lr": 0.1, "step_s": 1.0, "data_wait_s": 0.0})
        if pace.line_is_due(step):
            due.append(step)
    assert due == [1, *range(50, 1001, 50)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (356_400, "4 d 3 h")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words
