"""Weighted nearest neighbours on cosine similarity, as DINO measures features (arXiv 2104.14294, 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

NEIGHBOURS = 20
TEMPERATURE = 0.07
_CHUNK = 1024  # test rows compared at a time


def knn_predict(
    train_x: Tensor,
    train_labels: Tensor,
    test_x: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Vote among the nearest training rows, each weighted by exp(similarity / temperature).

    train_x [N, C], train_labels [N] int64, test_x [M, C] → predicted labels [M] int64.
    """
    classes = int(train_labels.max()) + 1
    neighbours = min(neighbours, len(train_x))
    bank = normalize(train_x.float(), dim=1)
    predicted = []
    for some in torch.split(test_x.float(), _CHUNK):
        similarity, nearest = (normalize(some, dim=1) @ bank.T).topk(neighbours, dim=1)  # [m, k]
        votes = torch.zeros(len(some), classes, device=some.device)
        votes.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def knn_accuracy(
    train_x: Tensor, train_labels: Tensor, test_x: Tensor, test_labels: Tensor, *, neighbours: int = NEIGHBOURS
) -> float:
    """Percentage of test rows whose weighted vote of `neighbours` training rows is right."""
    predicted = knn_predict(train_x, train_labels, test_x, neighbours=neighbours)
    return 100 * (predicted == test_labels).double().mean().item()
