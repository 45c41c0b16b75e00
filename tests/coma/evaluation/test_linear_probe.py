import numpy as np
import pytest
import torch
from devices import DEVICE

from coma.evaluation.features import held_out_fifth
from coma.evaluation.probe import L2_GRID, choose_l2, fit_probe, probe_accuracy


def _mixture(count: int, channels: int, classes: int, seed: int, spread: float = 1.0):
    """Return overlapping classes on badly scaled channels: x [N, C], labels [N]."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, channels)) * spread
    labels = rng.integers(0, classes, count)
    x = (centres[labels] + rng.standard_normal((count, channels))) * np.logspace(-2, 2, channels) + 5
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.gpu_too
@pytest.mark.parametrize("l2", [1e-4, 1e-2])
@pytest.mark.parametrize(("channels", "classes", "spread"), [(24, 5, 0.4), (96, 10, 0.2)])
def test_equals_scikit_learn(l2, channels, classes, spread):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = _mixture(1500, channels, classes, 0, spread)
    test_x, test_y = _mixture(1000, channels, classes, 1, spread)
    scaler = StandardScaler().fit(x.numpy())
    reference = LogisticRegression(C=1 / (l2 * len(x)), max_iter=5000, tol=1e-6)
    reference.fit(scaler.transform(x.numpy()), y.numpy())
    expected = 100 * reference.score(scaler.transform(test_x.numpy()), test_y.numpy())
    probe = fit_probe(x.to(DEVICE), y.to(DEVICE), l2=l2)
    assert 30 < expected < 99  # a figure that could move
    assert probe.accuracy(test_x.to(DEVICE), test_y.to(DEVICE)) == pytest.approx(expected, abs=0.5)
    weight = probe.weight.cpu()
    torch.testing.assert_close(weight - weight.mean(0), torch.tensor(reference.coef_).float(), atol=5e-3, rtol=5e-2)


def test_the_penalty_is_chosen_without_the_test_rows_and_helps():
    x, y = _mixture(150, 120, 4, 0, 0.15)  # nearly as many channels as rows: a weak penalty overfits
    test_x, test_y = _mixture(2000, 120, 4, 1, 0.15)
    chosen = choose_l2(x, y)
    scores = {l2: fit_probe(x, y, l2=l2).accuracy(test_x, test_y) for l2 in (1e-4, chosen)}
    assert chosen > 1e-4
    assert scores[chosen] > scores[1e-4]
    assert probe_accuracy(x, y, test_x, test_y) == scores[chosen]


def test_a_dead_channel_and_a_class_missing_in_training_do_no_harm():
    x, y = _mixture(400, 12, 3, 0)
    x[:, 3] = 7.25
    test_x, test_y = _mixture(400, 12, 3, 1)
    assert probe_accuracy(x, y, test_x, test_y) > 80
    assert probe_accuracy(x[y > 0], y[y > 0], test_x[test_y > 0], test_y[test_y > 0]) > 80


def test_the_same_twice():
    x, y = _mixture(300, 10, 3, 0)
    first, second = fit_probe(x, y, l2=1e-3), fit_probe(x, y, l2=1e-3)
    assert torch.equal(first.weight, second.weight)


def test_rows_of_one_image_do_not_speak_for_each_other() -> None:
    """The image alone tells the class: what is learned by heart serves its other rows, and nothing else."""
    chance = torch.Generator().manual_seed(0)
    image = torch.arange(40).repeat_interleave(10)
    labels = torch.randint(2, (40,), generator=chance)[image]
    x = torch.randn(40, 60, generator=chance)[image] + 0.1 * torch.randn(400, 60, generator=chance)
    held_out = held_out_fifth(40)[image]
    scores = {
        l2: fit_probe(x[~held_out], labels[~held_out], l2=l2, classes=2).accuracy(x[held_out], labels[held_out])
        for l2 in L2_GRID
    }
    best = max(L2_GRID, key=lambda l2: (scores[l2], l2))
    assert choose_l2(x, labels, image=image) == best
    assert choose_l2(x, labels) != best
