from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import draw_images, encoded
from PIL import Image

from coma.errors import DataError
from coma.model.coma import CoMA
from coma.model.independent import IndependentMasks
from coma.model.mae import MAE
from coma.pictures.columns import HIDDEN_GREY, TILE_PX, enlarge, hidden_pixels, lay_out
from coma.pictures.images import from_pixels, load_images, to_pixels
from coma.pictures.reconstruct import columns_of, picture


@pytest.fixture(scope="module")
def coma() -> CoMA:
    torch.manual_seed(0)
    return CoMA("dyvit_tiny", img_size=32, patch_size=2, views=2, decoder_depth=1)


def _images(count: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return from_pixels(pixels)


def test_normalisation_is_undone_exactly_and_clipped():
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)
    assert (to_pixels(from_pixels(pixels)) == pixels).all()
    wild = torch.tensor([[[[-50.0]], [[0.0]], [[50.0]]]])
    assert to_pixels(wild)[0, 0, 0].tolist() == [0, 116, 255]  # 0 is ImageNet's mean green, 0.456


def test_hidden_pixels_are_those_of_the_other_units():
    hidden = hidden_pixels(torch.tensor([[0, 5], [2, 4]]), unit_px=4, height=8, width=12)  # 2 x 3 units
    assert hidden[0, :4, :4].sum() == 0
    assert hidden[0, 4:, 8:].sum() == 0
    assert hidden[0].sum() == 4 * 16
    assert not hidden[1, :4, 8:].any()
    assert not hidden[1, 4:, 4:8].any()
    assert hidden[1, :, :4].all()


def test_views_are_complementary_and_paintings_keep_what_is_visible(coma):
    images, units = _images(), torch.tensor([[0, 3, 1, 2], [2, 1, 0, 3]])
    columns = columns_of(coma, images, units)
    assert [column.title for column in columns] == [
        "original",
        "view 1",
        "painted from 1",
        "view 2",
        "painted from 2",
    ]
    original, view1, painted1, view2, painted2 = (column.tiles for column in columns)
    assert (original == enlarge(to_pixels(images), original.shape[1] // 32)).all()
    side = original.shape[1] // 2
    assert (view1[0, :side, :side] == original[0, :side, :side]).all()  # unit 0 is in view 1 of image 0 …
    assert (view2[0, :side, :side] == HIDDEN_GREY).all()  # … and so not in view 2
    for view, painted in ((view1, painted1), (view2, painted2)):
        grey = (view == HIDDEN_GREY).all(-1)
        assert (painted[~grey] == original[~grey]).all()
        assert (painted[grey] != original[grey]).any()
    assert ((view1 == HIDDEN_GREY).all(-1) ^ (view2 == HIDDEN_GREY).all(-1)).mean() > 0.99


def test_hidden_pixels_show_the_networks_prediction(coma):
    images, units = _images(1), torch.tensor([[0, 3, 1, 2]])
    columns = columns_of(coma, images, units)
    scale = columns[0].tiles.shape[1] // 32
    painted = enlarge(to_pixels(coma.reconstruct(images, units)[:, 0]), scale)
    inside = slice(columns[0].tiles.shape[1] // 2, None)
    assert (columns[2].tiles[0, : inside.start, inside] == painted[0, : inside.start, inside]).all()  # unit 1


def test_the_page_holds_every_tile_and_leaves_the_network_as_it_was(coma):
    coma.train()
    before = {name: value.clone() for name, value in coma.state_dict().items()}
    page = picture(coma, _images(3), torch.tensor([[0, 3, 1, 2]] * 3))
    assert coma.training
    assert all(torch.equal(value, before[name]) for name, value in coma.state_dict().items())
    tile = 32 * -(-TILE_PX // 32)
    assert page.width > 5 * tile
    assert page.height > 3 * tile
    page_again = lay_out(columns_of(coma.eval(), _images(3), torch.tensor([[0, 3, 1, 2]] * 3)))
    assert np.array_equal(np.asarray(page), np.asarray(page_again))


def test_images_that_are_not_square():
    torch.manual_seed(0)
    wide = CoMA("dyvit_tiny", img_size=(32, 64), patch_size=2, views=2, decoder_depth=1)
    columns = columns_of(wide, _images(1, 32, 64), torch.arange(8)[None])
    height, width = columns[0].tiles.shape[1:3]
    assert width == 2 * height
    half = height // 2
    assert (columns[1].tiles[0, half:] == HIDDEN_GREY).all()  # view 1 sees the upper row of units
    assert (columns[1].tiles[0, :half] == columns[0].tiles[0, :half]).all()


def test_independent_views_show_what_each_of_them_sees():
    torch.manual_seed(0)
    model = IndependentMasks("dyvit_tiny", img_size=64, patch_size=2, views=2, decoder_depth=1)
    images, units = _images(3, 64, 64), torch.arange(16).repeat(3, 1)
    original, view1, painted1, view2, _ = (column.tiles for column in columns_of(model, images, units))
    side = original.shape[1] // 4
    for tiles, seen in zip((view1, view2), model.split_units(units)[0], strict=True):
        corners = (tiles == HIDDEN_GREY).all(-1)[:, side // 2 :: side, side // 2 :: side].reshape(3, 16)
        assert [(~row).nonzero()[0].tolist() for row in corners] == seen.sort(dim=1).values.tolist()
    grey = (view1 == HIDDEN_GREY).all(-1)
    assert (painted1[~grey] == original[~grey]).all()
    assert (grey & (view2 == HIDDEN_GREY).all(-1)).any()  # some units are in neither


def test_mae_shows_its_one_view():
    torch.manual_seed(0)
    mae = MAE("dyvit_tiny", img_size=32, patch_size=2)
    columns = columns_of(mae, _images(), torch.tensor([[0, 3, 1, 2], [2, 1, 0, 3]]))
    assert [column.title for column in columns] == ["original", "view", "painted"]
    assert (columns[1].tiles == HIDDEN_GREY).all(-1).mean() == pytest.approx(0.75, abs=0.01)


def test_files_and_folders_are_loaded_like_the_evaluation_sees_them(tmp_path: Path):
    left = np.zeros((60, 120, 3), np.uint8)
    left[:, :60] = 255
    Image.fromarray(left).save(tmp_path / "b.png")
    (tmp_path / "sub").mkdir()
    Image.fromarray(left[:, ::-1].copy()).convert("L").save(tmp_path / "sub" / "a.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    images = load_images([tmp_path], 32, limit=8)
    assert images.shape == (2, 3, 32, 32)
    shown = to_pixels(images)
    assert (shown[0, :, :12] > 250).all()
    assert (shown[0, :, 20:] < 5).all()
    assert (shown[1, :, 20:] > 240).all()
    assert load_images([tmp_path / "b.png"], (32, 64), limit=1).shape == (1, 3, 32, 64)


def test_mistakes_name_the_path(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_images([tmp_path / "nowhere"], 32, limit=1)
    with pytest.raises(DataError, match="holds no image files"):
        load_images([tmp_path], 32, limit=1)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no")
    with pytest.raises(DataError, match=r"none of 1 image files can be shown: .*bad\.jpg: not an image"):
        load_images([tmp_path], 32, limit=1)


def _tiff_of_16_bits(path: Path) -> None:
    Image.fromarray(np.full((40, 40), 60000, np.uint16)).save(path, "TIFF")


ODD = {
    "empty.jpg": lambda path: path.touch(),
    "text.png": lambda path: path.write_text("nope"),
    "cut.jpg": lambda path: path.write_bytes(encoded(0)[:-300]),
    "page.JPEG": lambda path: path.write_text("<html>not found</html>"),
    "dangling.jpg": lambda path: path.symlink_to("nowhere"),
    "folder.jpg": lambda path: path.mkdir(),
    ".hidden.jpg": lambda path: path.write_text("nope"),
    "notes.txt": lambda path: path.write_text("nope"),
    "README": lambda path: path.write_text("nope"),
}
NAMED = {"empty.jpg", "text.png", "cut.jpg", "page.JPEG"}


@pytest.mark.parametrize("odd", [*([name] for name in ODD), list(ODD)], ids=lambda names: "+".join(names[:2]))
def test_an_odd_file_among_images_is_passed_over_and_named(odd: list[str], tmp_path: Path, caplog) -> None:
    folder = draw_images(tmp_path / "look", 3, classes=("A", "b"), name="{}.JPG")
    for name in odd:
        ODD[name](folder / name)
    with caplog.at_level("INFO", "coma"):
        assert len(load_images([str(folder)], 32, limit=8)) == 3
    warned = " ".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert {name for name in ODD if f"{folder / name}: " in warned} == NAMED.intersection(odd)
    assert ("not images by their names" in caplog.text) == bool({"notes.txt", "README"}.intersection(odd))


def test_a_bad_image_gives_its_place_to_a_good_one_and_many_are_counted(tmp_path: Path, caplog) -> None:
    folder = draw_images(tmp_path, 20, name="{:02}.jpg")
    for number in range(0, 20, 2):
        (folder / f"{number:02}.jpg").write_text("nope")
    assert len(load_images([folder], 32, limit=10)) == 10
    assert "passed over 10 of the images: " in caplog.text
    assert "; and 5 more" in caplog.text


def test_named_files_are_shown_as_well_if_one_is_bad_and_large_depths_are_not_clipped(tmp_path: Path, caplog) -> None:
    _tiff_of_16_bits(tmp_path / "deep.tif")
    (tmp_path / "bad.jpg").write_text("nope")
    shown = to_pixels(load_images([tmp_path / "bad.jpg", tmp_path / "deep.tif"], 32, limit=8))
    assert shown.shape[0] == 1
    assert np.unique(shown).tolist() == [60000 >> 8]
    assert "bad.jpg: not an image" in caplog.text
