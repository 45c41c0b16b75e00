"""Units in raster order, patches in Morton order."""

import pytest
import torch

from coma.model.layout import SinCosPosition, from_units, sincos_2d, take_units, to_map, to_units


@pytest.mark.parametrize(("unit", "patch"), [(32, 4), (16, 2), (8, 8), (64, 4)])
def test_cutting_and_putting_back(unit: int, patch: int) -> None:
    images = torch.randn(2, 3, 64, 128)
    patches = to_units(images, unit, patch)
    assert patches.shape == (2, (64 // unit) * (128 // unit), (unit // patch) ** 2, 3 * patch**2)
    assert torch.equal(from_units(patches, (64 // unit, 128 // unit), patch), images)


def test_windows_are_squares() -> None:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    places = to_units(torch.stack([rows, columns])[None].float(), 32, 1)[0].long()  # [6, 1024, 2]
    for size in (4, 16, 64, 256):
        windows = places.reshape(-1, size, 2)
        corner, side = windows.amin(dim=1, keepdim=True), int(size**0.5)
        assert (corner % side == 0).all()
        inside = (windows - corner)[..., 0] * side + (windows - corner)[..., 1]
        assert torch.equal(inside.sort(dim=1).values, torch.arange(size).expand_as(inside))
    assert places[1, 0].tolist() == [0, 32]  # units in raster order
    assert places[3, 0].tolist() == [32, 0]


def test_sincos_tells_every_place_apart_and_shifts_with_the_unit() -> None:
    raster = to_map(sincos_2d((3, 2), 2, 64).flatten(0, 1)[None], (3, 2))[0]  # [6, 4, 64]
    flat = raster.flatten(0, 1)
    assert torch.cdist(flat, flat).add(torch.eye(24) * 9).min() > 0.1
    assert torch.equal(raster[2, :, 32:], raster[2, :1, 32:].expand(4, 32))  # rows in the second half
    assert torch.equal(raster[:, 3, :32], raster[:1, 3, :32].expand(6, 32))  # columns in the first
    frequency = 10000 ** -(3 / 16)
    assert raster[5, 2, 3].item() == pytest.approx(torch.tensor(2 * frequency).sin().item(), abs=1e-6)


def test_positions_follow_the_units_and_the_grid() -> None:
    position = SinCosPosition(64, 2)
    units = torch.stack([torch.randperm(6) for _ in range(2)])
    x = torch.zeros(2, 24, 64)
    laid = position(x, (2, 3), units).reshape(2, 6, 4, 64)
    assert torch.equal(laid[1, 4], position(x, (2, 3)).reshape(2, 6, 4, 64)[1, units[1, 4]])
    assert not torch.equal(position(x, (3, 2)), position(x, (2, 3)))
    assert not list(position.state_dict())


def test_take_units() -> None:
    x = torch.randn(2, 6, 3, 5)
    units = torch.tensor([[5, 0], [2, 2]])
    taken = take_units(x, units)
    assert torch.equal(taken[0, 0], x[0, 5])
    assert torch.equal(taken[1, 1], x[1, 2])
    assert take_units(x, None) is x
