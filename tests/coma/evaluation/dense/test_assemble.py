"""Windows put together to an image: as torch interpolates them, added where they overlap, in bands of any height."""

import pytest
import torch
from devices import DEVICE
from torch.nn.functional import interpolate

from coma.evaluation.dense import assemble as module
from coma.evaluation.dense.assemble import assemble, resize_weights


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
@pytest.mark.parametrize(("count", "length"), [(3, 12), (7, 50), (5, 5), (14, 9)])
def test_weights_are_torchs_interpolation(count, length, resampling):
    scores = torch.randn(1, 2, count, generator=torch.Generator().manual_seed(0))
    mode = {"nearest": "nearest-exact", "bilinear": "linear"}[resampling]
    expected = interpolate(scores, length, mode=mode)
    weights = resize_weights(count, length, resampling, scores.device)
    torch.testing.assert_close(scores @ weights.T, expected)


@pytest.mark.gpu_too
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("most", [1, 200, 2**24])
def test_overlapping_windows_are_added(monkeypatch, resampling, most):
    monkeypatch.setattr(module, "_MOST_SCORES", most)
    chance = torch.Generator().manual_seed(1)
    size, boxes = (40, 50), [(0, 0, 40, 32), (0, 18, 40, 32), (11, 3, 29, 40)]
    scores = [torch.randn(6, 5, 4, generator=chance) for _ in boxes]
    expected = torch.zeros(6, *size)
    for (top, left, height, width), each in zip(boxes, scores, strict=True):
        mode = {"nearest": "nearest-exact", "bilinear": "bilinear"}[resampling]
        expected[:, top : top + height, left : left + width] += interpolate(each[None], (height, width), mode=mode)[0]
    assembled = assemble(size, boxes, [each.to(DEVICE) for each in scores], resampling).cpu()
    best = expected.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(assembled[clear], expected.argmax(dim=0)[clear])
