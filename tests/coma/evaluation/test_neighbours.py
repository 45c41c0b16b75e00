import numpy as np
import pytest
import torch
from devices import DEVICE

from coma.evaluation.knn import knn_accuracy, knn_predict
from coma.evaluation.rankme import rankme


def test_votes_are_weighted_by_similarity():
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.78, 0.63]])
    labels = torch.tensor([4, 1, 1])
    query = torch.tensor([[5.0, 0.0]])
    # one near neighbour of class 4 outweighs two far ones of class 1 at this temperature …
    assert knn_predict(train, labels, query, neighbours=3).tolist() == [4]
    # … and not at a high one, where votes count alike
    assert knn_predict(train, labels, query, neighbours=3, temperature=10).tolist() == [1]


@pytest.mark.gpu_too
def test_equals_brute_force_in_numpy():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((200, 16)), rng.standard_normal((50, 16))
    labels = rng.integers(0, 5, 200)
    a = train / np.linalg.norm(train, axis=1, keepdims=True)
    b = test / np.linalg.norm(test, axis=1, keepdims=True)
    expected = []
    for row in b @ a.T:
        nearest = np.argsort(-row)[:20]
        votes = np.bincount(labels[nearest], np.exp(row[nearest] / 0.07), minlength=5)
        expected.append(votes.argmax())
    got = knn_predict(*(torch.tensor(values, device=DEVICE) for values in (train, labels, test)))
    assert got.tolist() == expected


def test_fewer_training_rows_than_neighbours():
    x = torch.eye(3)
    assert knn_accuracy(x, torch.arange(3), x, torch.arange(3)) == 100.0


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_rankme_of_orthogonal_features_is_their_rank(rank):
    x = torch.zeros(40, 8)
    x[torch.arange(40), torch.arange(40) % rank] = 1.0
    assert rankme(x) == pytest.approx(rank)


def test_rankme_survives_collapse_to_zero():
    assert rankme(torch.zeros(10, 4)) == 1.0
