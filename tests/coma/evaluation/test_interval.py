import numpy as np
import pytest

from coma.evaluation.interval import wilson


def test_the_textbooks_figures():
    """As scipy's `binomtest(15, 50).proportion_ci(method="wilson")` gives them."""
    scipy = pytest.importorskip("scipy.stats")
    for right, images in ((15, 50), (0, 12), (12, 12), (5320, 10_000)):
        expected = scipy.binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert wilson(100 * right / images, images) == pytest.approx(
            (100 * expected.low, 100 * expected.high), abs=1e-4
        )


def test_it_holds_the_truth_95_times_in_100():
    rng = np.random.default_rng(0)
    for truth, images in ((0.5, 100), (0.93, 400)):
        inside = [
            low <= 100 * truth <= high
            for low, high in (wilson(100 * rng.binomial(images, truth) / images, images) for _ in range(4000))
        ]
        assert 0.93 < np.mean(inside) < 0.97
