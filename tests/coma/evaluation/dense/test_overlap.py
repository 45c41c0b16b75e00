"""mIoU and pixel accuracy are scikit-learn's."""

import pytest
import torch

from coma.evaluation.dense.overlap import Overlap, pixel_counts


def _images(count, classes, seed=0):
    chance = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (count, 12, 9), generator=chance)
    wrong = torch.rand(truth.shape, generator=chance) < 0.4
    predicted = torch.where(wrong, torch.randint(classes, truth.shape, generator=chance), truth)
    truth[torch.rand(truth.shape, generator=chance) < 0.1] = 255
    return predicted, truth


def test_equals_scikit_learn():
    from sklearn.metrics import accuracy_score, jaccard_score

    predicted, truth = _images(8, 5)
    valid = truth != 255
    overlap = Overlap(torch.stack([pixel_counts(p, t, 7) for p, t in zip(predicted, truth, strict=True)]))
    y_true, y_pred = truth[valid].numpy(), predicted[valid].numpy()
    expected = 100 * jaccard_score(y_true, y_pred, average=None)
    assert overlap.class_iou[:5] == pytest.approx(expected.tolist())
    assert overlap.class_iou[5:] == [None, None]  # neither there nor predicted
    assert overlap.miou == pytest.approx(expected.mean())
    assert overlap.pixel_accuracy == pytest.approx(100 * accuracy_score(y_true, y_pred))
    assert sum(overlap.class_share) == pytest.approx(100)


def test_a_class_that_is_predicted_where_it_never_is_counts_as_0():
    overlap = Overlap(pixel_counts(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 3)[None])
    assert overlap.class_iou == [50.0, 0.0, None]
    assert overlap.miou == 25.0


def test_the_interval_holds_the_figure_and_narrows_with_more_images():
    widths = []
    for count in (10, 250):
        predicted, truth = _images(count, 5, seed=count)
        overlap = Overlap(torch.stack([pixel_counts(p, t, 5) for p, t in zip(predicted, truth, strict=True)]))
        low, high = overlap.miou_interval()
        assert low < overlap.miou < high
        assert (low, high) == overlap.miou_interval()
        widths.append(high - low)
    assert widths[0] > 3 * widths[1]
