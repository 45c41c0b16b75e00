import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.training.config.schedule import learning_rate, peak_lr


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
