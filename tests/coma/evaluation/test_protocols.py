"""The linear probes of other papers, on features drawn from known classes."""

import pytest
import torch
from devices import DEVICE

from coma.evaluation.linear import LEARNING_RATES, choose_rate, lars_logits, sgd_logits, train_heads
from coma.evaluation.probe import logistic_logits, top_accuracy

STEPS = 150


def _classes(count: int, seed: int, apart: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Six round clouds in 32 channels: x [N, C], labels [N]."""
    centres = torch.randn(6, 32, generator=torch.Generator().manual_seed(99)) * apart
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (count,), generator=chance)
    x = centres[labels] + torch.randn(count, 32, generator=chance)
    return x.to(DEVICE), labels.to(DEVICE)


def _dinov2(x, y, test_x):
    return sgd_logits(x, y, test_x, steps=STEPS)


@pytest.mark.gpu_too
@pytest.mark.parametrize(("fit", "count"), [(logistic_logits, 500), (_dinov2, 500), (lars_logits, 20_000)])
def test_classes_that_lie_apart_are_told_apart_and_the_same_twice(fit, count):
    (x, y), (test_x, test_y) = _classes(count, 0, apart=2.0), _classes(500, 1, apart=2.0)
    logits = fit(x, y, test_x)
    assert top_accuracy(logits, test_y) > 99
    assert torch.equal(logits, fit(x, y, test_x))


@pytest.mark.gpu_too
def test_the_learning_rate_is_chosen_of_train_and_is_the_best_of_its_fifth():
    from coma.evaluation.features import held_out_fifth

    x, y = _classes(600, 0, apart=0.3)
    chosen = choose_rate(x, y, steps=STEPS)
    held_out = held_out_fifth(len(x)).to(x.device)
    scores = {}
    for rate in LEARNING_RATES:
        weight, bias = train_heads(x[~held_out], y[~held_out], [rate], classes=6, steps=STEPS)
        scores[rate] = top_accuracy(x[held_out] @ weight[0] + bias[0], y[held_out])
    assert scores[chosen] == pytest.approx(max(scores.values()))
    assert min(scores.values()) < max(scores.values())
    test_x, _ = _classes(50, 1, apart=0.3)
    weight, bias = train_heads(x, y, [chosen], steps=STEPS)
    assert torch.equal(sgd_logits(x, y, test_x, steps=STEPS), test_x @ weight[0] + bias[0])


def test_many_learning_rates_at_once_are_each_alone_and_as_torchs_sgd():
    x, y = _classes(300, 0, apart=0.5)
    weight, bias = train_heads(x, y, [1e-3, 0.1], steps=40)
    alone, _ = train_heads(x, y, [0.1], steps=40)
    torch.testing.assert_close(weight[1], alone[0], atol=1e-5, rtol=1e-4)
    chance = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(32, 6, generator=chance) * 0.01)
    b = torch.nn.Parameter(torch.zeros(6))
    optimiser = torch.optim.SGD([w, b], lr=0.1 * 300 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 40)
    for _ in range(40):  # a batch of all rows: their order is no matter
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(x @ w + b, y).backward()
        optimiser.step()
        schedule.step()
    torch.testing.assert_close(weight[1], w.detach(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(bias[1, 0], b.detach(), atol=1e-4, rtol=1e-3)


def test_smaller_batches_for_a_small_set_are_told(caplog):
    x, y = _classes(40, 0)
    with caplog.at_level("INFO", logger="coma"):
        assert lars_logits(x, y, x).shape == (40, 6)
    assert "batches of 10, not 16384, as there are 40 images" in caplog.text
