"""Heads on patches of drawn features: as scikit-learn's on the same patches, and better with what they choose."""

import numpy as np
import pytest
import torch
from devices import DEVICE

from coma.evaluation.dense.heads import fit_logistic, fit_neighbours
from coma.evaluation.dense.overlap import Overlap, pixel_counts
from coma.evaluation.dense.patches import IGNORED, Patches, majority
from coma.evaluation.dense.pixel_head import fit_pixels, pixel_loss

CHANNELS, CLASSES, SIDE, P = 24, 5, 4, 4


def _features(images: int, seed: int, noise: float = 1.6):
    """Maps [N, C, h, w] of noisy class centres, and pixels [N, h, w, P] most of which are of a patch's class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLASSES, CHANNELS))
    classes = rng.integers(0, CLASSES, (images, SIDE, SIDE))
    x = centres[classes] + noise * rng.standard_normal((images, SIDE, SIDE, CHANNELS))
    x = x * np.logspace(-1, 1, CHANNELS) + 3
    pixels = np.repeat(classes[..., None], P, axis=3)
    pixels = np.where(rng.random(pixels.shape) < 0.15, rng.integers(0, CLASSES, pixels.shape), pixels)
    pixels[rng.random(pixels.shape) < 0.05] = IGNORED
    maps = torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    return maps.to(DEVICE), torch.tensor(pixels, dtype=torch.uint8, device=DEVICE)


def _patches(maps, pixels):
    x, flat = maps.permute(0, 2, 3, 1).reshape(-1, CHANNELS), pixels.reshape(-1, P)
    classes = majority(flat, CLASSES)
    images = torch.arange(len(maps), device=DEVICE).repeat_interleave(SIDE * SIDE)
    return Patches(x, classes, flat, images).select(classes != IGNORED)


def _miou(predicted, pixels):
    """MIoU in percent of classes [N, h, w], or [N, h, w, P]."""
    predicted = predicted[..., None].expand_as(pixels) if predicted.ndim == 3 else predicted
    return Overlap(pixel_counts(predicted, pixels, CLASSES)[None]).miou


@pytest.fixture(scope="module")
def drawn():
    return (*_features(60, 0), *_features(50, 1))


@pytest.mark.gpu_too
def test_logistic_regression_is_scikit_learns(drawn):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    maps, pixels, test_maps, test_pixels = drawn
    patches, l2 = _patches(maps, pixels), 1e-2
    predicted = fit_logistic(patches, CLASSES, (l2,)).scores(test_maps).argmax(dim=1)
    rows = test_maps.permute(0, 2, 3, 1).reshape(-1, CHANNELS).cpu().numpy()
    scaler = StandardScaler().fit(patches.x.cpu().numpy())
    reference = LogisticRegression(C=1 / (l2 * len(patches)), max_iter=5000, tol=1e-5)
    reference.fit(scaler.transform(patches.x.cpu().numpy()), patches.classes.cpu().numpy())
    labels = torch.tensor(reference.predict(scaler.transform(rows)), device=DEVICE)
    expected = _miou(labels.view(-1, SIDE, SIDE), test_pixels)
    assert 30 < expected < 90  # a figure that could move
    assert _miou(predicted, test_pixels) == pytest.approx(expected, abs=0.5)


def test_the_penalty_is_chosen_on_train_and_helps():
    """More channels than a weak penalty can bear with so few patches."""
    (maps, pixels), (test_maps, test_pixels) = _features(15, 0, noise=2.5), _features(50, 1, noise=2.5)
    patches = _patches(maps, pixels)
    weak, chosen = (fit_logistic(patches, CLASSES, grid) for grid in ((1e-5,), (1e-5, 1e-1)))
    figures = [_miou(head.scores(test_maps).argmax(dim=1), test_pixels) for head in (weak, chosen)]
    assert figures[1] > figures[0] + 1


@pytest.mark.gpu_too
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbours_are_scikit_learns(drawn, distance):
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    maps, pixels, test_maps, test_pixels = drawn
    patches = _patches(maps, pixels)
    scores = fit_neighbours(patches, CLASSES, (7,), (distance,)).scores(test_maps)
    p = round(P**0.5)
    predicted = scores.argmax(dim=1).view(len(test_maps), SIDE, p, SIDE, p).transpose(2, 3).flatten(3)
    scaler = StandardScaler().fit(patches.x.cpu().numpy())
    search = NearestNeighbors(n_neighbors=7, metric=distance).fit(scaler.transform(patches.x.cpu().numpy()))
    rows = test_maps.permute(0, 2, 3, 1).reshape(-1, CHANNELS).cpu().numpy()
    nearest = search.kneighbors(scaler.transform(rows), return_distance=False)
    votes = patches.pixels.cpu()[torch.tensor(nearest)]  # [m, k, P]
    counts = torch.stack([(votes == each).sum(dim=1) for each in range(CLASSES)])  # [L, m, P]
    expected = counts.argmax(dim=0).view(len(test_maps), SIDE, SIDE, P)
    assert (predicted.cpu() == expected).float().mean() > 0.999  # but for rounding in distances
    assert 40 < _miou(expected, test_pixels.cpu()) < 95


def test_the_number_of_neighbours_is_chosen_on_train_and_helps(drawn):
    maps, pixels, test_maps, test_pixels = drawn
    patches = _patches(maps, pixels)
    chosen = fit_neighbours(patches, CLASSES)
    assert chosen.neighbours > 1  # the classes overlap
    p = round(P**0.5)

    def miou(head):
        predicted = head.scores(test_maps).argmax(dim=1)
        return _miou(predicted.view(len(test_maps), SIDE, p, SIDE, p).transpose(2, 3).flatten(3), test_pixels)

    assert miou(chosen) > miou(fit_neighbours(patches, CLASSES, (1,), ("cosine",))) + 3


@pytest.mark.gpu_too
def test_the_linear_layer_learns_pixels_and_its_folded_normalisation_is_the_same(drawn):
    maps, pixels, test_maps, test_pixels = drawn
    p = round(P**0.5)

    def image(of):
        return of.view(len(of), SIDE, SIDE, p, p).transpose(2, 3).reshape(len(of), SIDE * p, SIDE * p)

    def batches(number):
        order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(number))
        for rows in torch.split(order, 16):
            yield maps[rows], image(pixels)[rows]

    head = fit_pixels(batches, len(maps), CHANNELS, CLASSES, DEVICE)
    again = fit_pixels(batches, len(maps), CHANNELS, CLASSES, DEVICE)
    assert torch.equal(head.weight, again.weight)
    scores = torch.nn.functional.interpolate(
        head.scores(test_maps), scale_factor=p, mode="bilinear", align_corners=False
    )
    miou = Overlap(pixel_counts(scores.argmax(dim=1), image(test_pixels), CLASSES)[None]).miou
    logistic = fit_logistic(_patches(maps, pixels), CLASSES, (1e-2,)).scores(test_maps).argmax(dim=1)
    assert miou > _miou(logistic, test_pixels) - 12  # no map is smooth here, as interpolation supposes


def test_the_loss_is_cross_entropy_of_interpolated_logits_without_ignored_pixels():
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=chance)
    truth = torch.randint(3, (2, 16, 16), generator=chance).to(torch.uint8)
    truth[0, :5] = IGNORED
    large = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.cross_entropy(large, truth.long(), ignore_index=IGNORED)
    torch.testing.assert_close(pixel_loss(logits, truth), expected)
