"""The control: as many tokens and predictions as CoMA, of masks that know nothing of each other."""

import itertools

import pytest
import torch
from predictions import predict_pixels
from torch import Tensor

from coma.errors import UsageError
from coma.model.autoencoder import normalise_patches
from coma.model.coma import CoMA
from coma.model.independent import IndependentMasks, independent_units
from coma.pipeline.views import partition_units


def make(views: int = 3, predict: int | None = None) -> IndependentMasks:
    torch.manual_seed(0)
    return IndependentMasks("dyvit_nano", img_size=(64, 96), views=views, predict=predict)


def given(images: int, units: int, seed: int = 0) -> Tensor:
    """[B, U], as the stream gives them."""
    return partition_units(torch.arange(images), torch.zeros(images).long(), seed=seed, units=units)


# -- masks -------------------------------------------------------------------------


def test_each_draw_is_a_permutation_and_repeatable() -> None:
    units = given(64, 49)
    draws = independent_units(units, 4)
    assert torch.equal(draws.sort(dim=2).values, torch.arange(49).expand(64, 4, 49))
    assert torch.equal(independent_units(units[5:9], 4), draws[5:9])  # whatever else is in the batch
    assert torch.equal(independent_units(units, 2), draws[:, :2])
    assert len({tuple(row) for row in draws.flatten(0, 1).tolist()}) == 256
    assert not torch.equal(independent_units(given(64, 49, seed=1), 4), draws)


def test_each_views_units_are_a_uniform_subset() -> None:
    """Over many images each unit, and each pair of units, is seen as often as any other."""
    n, u, size = 20_000, 9, 4
    draws = independent_units(given(n, u), 3)
    for view in range(3):
        seen = torch.zeros(n, u).scatter(1, draws[:, view, :size], 1.0)
        share, spread = size / u, (size / u * (1 - size / u) / n) ** 0.5
        assert (seen.mean(dim=0) - share).abs().max() < 4.5 * spread
        pairs = (seen.T @ seen / n)[~torch.eye(u, dtype=torch.bool)]
        assert (pairs - size * (size - 1) / (u * (u - 1))).abs().max() < 4.5 * (1 / 6 * 5 / 6 / n) ** 0.5


def test_views_of_an_image_are_independent() -> None:
    """A unit that one view sees is seen by another as often as any unit: half of them, not none as in CoMA."""
    n, u, size = 20_000, 9, 4
    units = given(n, u)
    draws = torch.cat([units[:, None], independent_units(units, 3)], dim=1)  # nor do they follow the given one
    seen = [torch.zeros(n, u).scatter(1, draws[:, k, :size], 1.0) for k in range(4)]
    spread = ((size / u) ** 2 * (1 - (size / u) ** 2) / n) ** 0.5
    for a, b in itertools.combinations(seen, 2):
        assert (a.T @ b / n - (size / u) ** 2).abs().max() < 4.5 * spread


# -- who predicts what --------------------------------------------------------------


@pytest.mark.parametrize(("views", "predict"), [(2, None), (3, None), (4, None), (4, 1), (5, 2)])
def test_a_view_predicts_as_much_as_comas_and_only_what_it_hides(views: int, predict: int | None) -> None:
    model = make(views, predict)
    coma = CoMA(model.backbone, img_size=(64, 96), views=views, predict=predict)
    units = given(8, 6)
    visible, hidden = model.split_units(units)
    assert [[view.shape for view in part] for part in (visible, hidden)] == [
        [view.shape for view in part] for part in coma.split_units(units)
    ]
    for seen, unseen in zip(visible, hidden, strict=True):
        both = torch.cat([seen, unseen], dim=1)
        assert all(len(set(row)) == len(row) for row in both.tolist())  # nothing is both seen and predicted
    for seen, unseen in zip(*model.split_units(units, predict_all=True), strict=True):
        whole = torch.cat([seen, unseen], dim=1)
        assert torch.equal(whole.sort(dim=1).values, torch.arange(6).expand(8, 6))


@pytest.mark.parametrize(("views", "predict"), [(2, None), (3, None), (4, 1)])
def test_nothing_leaks_from_what_a_view_hides(views: int, predict: int | None) -> None:
    model = make(views, predict)
    images, units = torch.randn(1, 3, 64, 96, requires_grad=True), given(1, 6, seed=3)
    visible, hidden = model.split_units(units)
    parts = [model.tokens * view.shape[1] for view in hidden]
    predicted = torch.split(predict_pixels(model, images, units), parts, 1)
    for seen, part in zip(visible, predicted, strict=True):
        (grad,) = torch.autograd.grad(part.square().sum(), images, retain_graph=True)
        felt = (model.encoder.unit_patches(grad)[0] != 0).flatten(1).any(dim=1)
        assert sorted(felt.nonzero().flatten().tolist()) == sorted(seen[0].tolist())


def test_the_loss_is_the_mean_over_all_predictions() -> None:
    model = make(3)
    images, units = torch.randn(2, 3, 64, 96), given(2, 6)
    predicted = predict_pixels(model, images, units)
    hidden = torch.cat(model.split_units(units)[1], dim=1)  # [B, 12]
    patches = model.encoder.unit_patches(images)
    own = torch.stack([patches[i, hidden[i]] for i in range(2)]).reshape(2, 12 * model.tokens, -1)
    expected = (predicted - normalise_patches(own)[0]).square().mean()
    torch.testing.assert_close(model(images, units), expected)


@pytest.mark.parametrize(("views", "predict"), [(2, None), (4, None), (4, 1)])
def test_it_encodes_and_predicts_as_many_tokens_as_coma(views: int, predict: int | None) -> None:
    mine = make(views, predict)
    theirs = CoMA(mine.backbone, img_size=(64, 96), views=views, predict=predict)
    counts = []
    for model in (mine, theirs):
        seen: list[tuple[int, ...]] = []
        hook = model.backbone.norm.register_forward_hook(lambda _, x, __, seen=seen: seen.append(x[0].shape))
        seen.append(predict_pixels(model, torch.randn(2, 3, 64, 96), given(2, 6)).shape)
        hook.remove()
        counts.append(seen)
    assert counts[0] == counts[1] == [(2, 6, 256), (2, (predict or views - 1) * 24, 768)]


def test_views_encode_what_they_would_alone() -> None:
    """Units that several views see are encoded for each of them."""
    model = make(2).eval()
    images, units = torch.randn(2, 3, 64, 96), given(2, 6)
    visible, _ = model.split_units(units)
    joint = model.backbone.encode(images, torch.cat(visible, dim=1), (3, 3))[-1]
    alone = model.backbone.encode(images, visible[1])[-1]
    torch.testing.assert_close(joint[:, 3:], alone, atol=1e-5, rtol=1e-4)


def test_pictures_keep_what_each_view_sees() -> None:
    model = make(3).eval()
    images, units = torch.randn(2, 3, 64, 96), given(2, 6)
    pictures, (visible, _) = model.reconstruct(images, units), model.split_units(units)
    assert pictures.shape == (2, 3, 3, 64, 96)
    for view, seen in enumerate(visible):
        true, made = (model.encoder.unit_patches(x) for x in (images, pictures[:, view]))
        for i in range(2):
            same = (true[i] == made[i]).flatten(1).all(dim=1).nonzero().flatten().tolist()
            assert same == sorted(seen[i].tolist())


def test_one_view_is_refused_as_by_coma() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        make(1)
