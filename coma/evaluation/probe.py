"""The linear probe: multinomial logistic regression on standardised frozen features, fitted by L-BFGS.

The objective is scikit-learn's `LogisticRegression` divided by the number of rows N:
mean cross-entropy + l2 / 2 · ‖W‖², the bias free, so its C is 1 / (l2 · N).

Legend: N training rows, M test rows, C channels, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coma.evaluation.features import held_out_fifth

L2_GRID = (1e-4, 1e-3, 1e-2, 1e-1)
_MAX_ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe: `logits = (x - mean) / std @ weight.T + bias`."""

    mean: Tensor  # [C]
    std: Tensor  # [C]
    weight: Tensor  # [L, C]
    bias: Tensor  # [L]

    def logits(self, x: Tensor) -> Tensor:
        """Score the classes of features x [M, C] → [M, L]."""
        standardised: Tensor = (x.float() - self.mean) / self.std
        return standardised @ self.weight.T + self.bias

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Percentage of rows x [M, C] whose highest score is their label [M]."""
        return top_accuracy(self.logits(x), labels)


def top_accuracy(logits: Tensor, labels: Tensor, best: int = 1) -> float:
    """Percentage of rows of logits [M, L] whose label [M] is among the `best` highest."""
    highest = logits.topk(min(best, logits.shape[1]), dim=1).indices
    return 100 * (highest == labels[:, None]).any(dim=1).double().mean().item()


def fit_probe(x: Tensor, labels: Tensor, *, l2: float, classes: int | None = None) -> LinearProbe:
    """Fit a probe on x [N, C] float and labels [N] int64 with a penalty, to convergence, without randomness."""
    classes = classes or int(labels.max()) + 1
    x = x.float()
    mean = x.mean(dim=0)
    std = x.std(dim=0, correction=0)
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))  # a dead channel stays zero
    standardised = (x - mean) / std
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(standardised @ weight.T + bias, labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(objective)  # type: ignore[no-untyped-call]
    return LinearProbe(mean, std, weight.detach(), bias.detach())


def choose_l2(x: Tensor, labels: Tensor, grid: Sequence[float] = L2_GRID, *, image: Tensor | None = None) -> float:
    """Pick the penalty of the grid with the best accuracy on a fifth of the rows, or of the images, fitted on the rest.

    Of equally good ones the strongest is taken. The test rows have no say.
    """
    held_out = held_out_fifth(len(x), image).to(x.device)
    if not held_out.any():
        return grid[len(grid) // 2]
    classes = int(labels.max()) + 1
    scores = {
        l2: fit_probe(x[~held_out], labels[~held_out], l2=l2, classes=classes).accuracy(x[held_out], labels[held_out])
        for l2 in grid
    }
    return max(grid, key=lambda l2: (scores[l2], l2))


def probe_accuracy(
    train_x: Tensor, train_labels: Tensor, test_x: Tensor, test_labels: Tensor, *, l2: float | None = None
) -> float:
    """Fit on the training rows (choosing the penalty there if None); return test accuracy in percent."""
    l2 = choose_l2(train_x, train_labels) if l2 is None else l2
    return fit_probe(train_x, train_labels, l2=l2).accuracy(test_x, test_labels)


def logistic_logits(train_x: Tensor, train_labels: Tensor, test_x: Tensor, image: Tensor | None = None) -> Tensor:
    """Fit on the training rows, choosing the penalty there; return the test rows' logits [M, L].

    `image` [N] numbers the images that training rows are tiles of; None: they are none.
    """
    return fit_probe(train_x, train_labels, l2=choose_l2(train_x, train_labels, image=image)).logits(test_x)
