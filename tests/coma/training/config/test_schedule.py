import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.errors import UsageError
from coma.training import PretrainConfig
from coma.training.config.schedule import Segment, extend, learning_rate, peak_lr, plan_segment, rate_at

COSINE, CONSTANT = PretrainConfig(), PretrainConfig(schedule="constant")


def test_peak_scales_with_the_batch() -> None:
    assert peak_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)
    assert peak_lr(1.5e-4, 256) == 1.5e-4


@given(steps=st.integers(1, 500), warmup_share=st.floats(0, 0.9), peak=st.floats(1e-6, 1))
def test_rises_to_the_peak_then_falls_and_is_never_zero(steps: int, warmup_share: float, peak: float) -> None:
    warmup = int(warmup_share * steps)
    rates = [learning_rate(step, peak=peak, warmup_steps=warmup, steps=steps) for step in range(1, steps + 1)]
    assert all(0 < rate <= peak for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if warmup:
        assert rates[warmup - 1] == peak
        assert rates[0] == pytest.approx(peak / warmup)


def test_follows_half_a_cosine() -> None:
    rates = [learning_rate(step, peak=2.0, warmup_steps=0, steps=99) for step in range(1, 100)]
    assert rates == pytest.approx([1 + math.cos(math.pi * step / 100) for step in range(1, 100)])


def test_a_constant_rate_falls_by_one_minus_a_square_root_at_the_end() -> None:
    rates = [learning_rate(step, peak=2.0, warmup_steps=4, steps=20, cooldown_steps=8) for step in range(1, 21)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:12] == [2.0] * 8
    assert rates[12:] == pytest.approx([2 * (1 - math.sqrt(k / 9)) for k in range(1, 9)])
    assert rates[-1] > 0


@pytest.mark.parametrize(
    ("config", "segment"),
    [
        (COSINE, Segment(0, 0, 100, 5)),
        (CONSTANT, Segment(0, 0, 100, 5, 20)),
        (PretrainConfig(schedule="constant", warmup_epochs=9), Segment(0, 0, 100, 90, 10)),
        (PretrainConfig(schedule="constant", warmup_epochs=2, cooldown_epochs=8), Segment(0, 0, 100, 20, 80)),
        (PretrainConfig(schedule="constant", cooldown_epochs=0), Segment(0, 0, 100, 5, 0)),
    ],
)
def test_a_run_of_a_hundred_steps_of_ten_epochs(config: PretrainConfig, segment: Segment) -> None:
    assert plan_segment(config, 10.0, end=100) == segment


def test_a_cosine_begins_anew_for_the_steps_that_are_left() -> None:
    begun = (plan_segment(COSINE, 10.0, end=100),)
    segments = extend(begun, COSINE, 10.0, after=100, end=300)
    assert segments == (*begun, Segment(100, 100, 300, 10))
    before = [learning_rate(step, peak=1.0, warmup_steps=5, steps=100) for step in range(1, 101)]
    anew = [learning_rate(step, peak=1.0, warmup_steps=10, steps=200) for step in range(1, 201)]
    assert [rate_at(step, 1.0, segments) for step in range(1, 301)] == before + anew


@given(after=st.integers(1, 80), more=st.integers(1, 300), twice=st.integers(1, 99))
def test_a_constant_rate_that_is_extended_before_its_cooldown_is_that_of_the_longer_run(
    after: int, more: int, twice: int
) -> None:
    config = PretrainConfig(schedule="constant", warmup_epochs=1)
    begun = (plan_segment(config, 10.0, end=100),)
    segments = extend(begun, config, 10.0, after=after, end=100 + more)
    longer = (plan_segment(config, 10.0, end=100 + more),)
    assert segments[-1].seamless
    assert [rate_at(step, 1.0, segments) for step in range(1, 101 + more)] == [
        rate_at(step, 1.0, longer) for step in range(1, 101 + more)
    ]
    again = extend(segments, config, 10.0, after=after, end=100 + more + twice)  # before a step was saved
    assert again == extend(begun, config, 10.0, after=after, end=100 + more + twice)


def test_a_constant_rate_that_has_begun_to_fall_is_warmed_up_again() -> None:
    begun = (plan_segment(CONSTANT, 10.0, end=100),)
    assert extend(begun, CONSTANT, 10.0, after=80, end=200)[-1] == Segment(80, 0, 200, 5, 40)
    assert extend(begun, CONSTANT, 10.0, after=81, end=181)[-1] == Segment(81, 81, 181, 5, 20)


def test_a_run_without_a_checkpoint_is_planned_from_its_beginning() -> None:
    begun = (plan_segment(COSINE, 10.0, end=100),)
    assert extend(begun, COSINE, 10.0, after=0, end=200) == (plan_segment(COSINE, 10.0, end=200),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": 2}, "--warmup-epochs 2 is 20 steps, and the run has 10 more: warm up for less"),
        (
            {"schedule": "constant", "cooldown_epochs": 3},
            "--cooldown-epochs 3 is 30 steps, and 10 are left for it: cool down for less",
        ),
    ],
)
def test_an_extension_too_short_for_its_schedule_is_refused(options: dict[str, Any], message: str) -> None:
    config = PretrainConfig(**options)
    begun = (plan_segment(config, 10.0, end=100),)
    with pytest.raises(UsageError, match=message):
        extend(begun, config, 10.0, after=100, end=110)
