"""Grids of tiles: every pixel is in a tile, and a tile's place is in its name."""

import numpy as np
import pytest

from coma.shards.tiles.grid import Grid, image_numbers, image_of, place_in


@pytest.mark.parametrize("overlap", [0, 1, 7, 16])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (31, 100), (100, 31), (33, 32), (64, 96), (97, 131), (5, 5)])
def test_every_pixel_is_in_a_tile_and_none_is_outside(width: int, height: int, overlap: int) -> None:
    grid = Grid(width, height, 32, overlap)
    seen = np.zeros((height, width), int)
    places = set()
    for number in range(len(grid)):
        tile = grid.at(number)
        assert (tile.width, tile.height) == (min(32, width), min(32, height))
        assert 0 <= tile.left <= width - tile.width
        assert 0 <= tile.top <= height - tile.height
        seen[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
        places.add((tile.left, tile.top))
    assert seen.all()
    assert len(places) == len(grid)


def test_neighbours_share_the_overlap() -> None:
    lefts = sorted({Grid(100, 32, 32, 8).at(number).left for number in range(len(Grid(100, 32, 32, 8)))})
    assert lefts == [0, 24, 48, 68]


def test_the_place_is_read_back_from_a_name() -> None:
    tile = Grid(1000, 1000, 256, 0).at(6)
    name = f"a@x=1,y=2/slide@x=3,y=4.tif{tile.place}"
    assert place_in(name) == (512, 256)
    assert image_of(name) == "a@x=1,y=2/slide@x=3,y=4.tif"
    assert place_in("slide.tif") is None
    assert image_of(f"{name}@x=32,y=0") == image_of(name), "a tile of a tile"
    assert "." not in tile.key


def test_samples_are_numbered_by_the_images_they_were_cut_from() -> None:
    numbers = image_numbers(["a.tif@x=0,y=0", "photo.jpg", "a.tif@x=64,y=0", "b.tif@x=0,y=0", "photo.jpg"])
    assert numbers is not None
    assert numbers.tolist() == [0, 1, 0, 2, 1]
    assert image_numbers(["a.tif", "a.tif", "b@x=1.tif"]) is None
    assert image_numbers([]) is None
