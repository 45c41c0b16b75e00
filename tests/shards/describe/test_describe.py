import io
import json
import shutil

import numpy as np
import pytest
from drawn import shard_images
from PIL import Image

from coma.shards.describe.card import data_card
from coma.shards.describe.contact_sheet import (
    _captions,
    balanced_choice,
    contact_sheet,
    read_displayed,
    write_contact_sheet,
)
from coma.shards.describe.describe import as_json, describe
from coma.shards.manifest import read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard


@pytest.fixture(scope="module")
def made(tmp_path_factory, tree, image):
    """18 photographs of cats, dogs and emus, 4 more of dogs, one PNG, one empty file."""
    folder = tmp_path_factory.mktemp("made")
    source = tree(folder / "pets")
    (source / "cat/bad.jpg").write_bytes(b"")
    (source / "emu/z.png").write_bytes(image(70, form="PNG"))
    for i in range(4):
        (source / f"dog/more-{i}.jpg").write_bytes(image(50 + i))
    shard_images(source, folder / "out", shard_bytes=20_000)
    return folder / "out"


def test_counts_are_those_of_the_manifest(made):
    found = describe(made)
    (train,) = found.splits
    manifest = read_manifest(made)
    assert train.samples == len(manifest) == 23
    assert found.set_aside == {"empty": 1}
    assert found.class_names == ("cat", "dog", "emu")
    assert list(train.formats.items()) == [("jpeg", 22), ("png", 1)]
    assert (train.width.min, train.width.max) == (manifest.width.min(), manifest.width.max())
    assert train.shard_bytes == sum(path.stat().st_size for path in (made / "train").glob("*.tar"))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory, image):
    """Eight images of a list with the labels 3, 10 and 20, which have no names."""
    folder = tmp_path_factory.mktemp("numbered")
    labels = (3, 10, 20, 3, 10, 20, 3, 3)
    for i in range(len(labels)):
        (folder / f"{i}.jpg").write_bytes(image(i))
    rows = "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
    (folder / "list.csv").write_text("path,label\n" + rows)
    return shard_images(folder / "list.csv", folder / "out")


def test_labels_without_names_are_numbers_everywhere(numbered):
    found = describe(numbered, measured=0)
    assert found.class_names is None
    assert as_json(found)["classes"] == ["3", "10", "20"]
    assert found.splits[0].classes.counts == {"3": 4, "10": 2, "20": 2}
    card = data_card(numbered)
    assert "8 images of 3 classes, " in card
    assert "The labels are numbers without names: 3, 10, 20." in card
    assert "class_label" not in card
    assert "unlabelled" not in card + json.dumps(as_json(found))
    manifest = read_manifest(numbered)
    assert shard(numbered.parent / "list.csv", numbered, ShardOptions(workers=1)).classes == 3
    assert sorted(set(_captions(manifest, np.arange(len(manifest))))) == ["10", "20", "3"]


def test_class_balance(made):
    classes = describe(made, measured=0).splits[0].classes
    assert classes.counts == {"cat": 6, "dog": 10, "emu": 7}
    assert (classes.smallest, classes.largest) == ("cat", "dog")
    assert (classes.per_class.min, classes.per_class.median, classes.per_class.max) == (6, 7, 10)
    share = np.array([6, 10, 7]) / 23
    assert classes.effective == pytest.approx(np.prod(share**-share))  # the exponential of the entropy
    assert 2.9 < classes.effective < 3


def test_mean_and_std_of_plain_colours_are_exact(tmp_path):
    (tmp_path / "plain").mkdir()
    for i, colour in enumerate([(255, 0, 51), (255, 255, 51)]):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"plain/{i}.png")
    shard_images(tmp_path / "plain", tmp_path / "out")
    channels = describe(tmp_path / "out").splits[0].channels
    assert channels.mean == (1, 0.5, 0.2)
    assert channels.std == (0, 0.5, 0)
    assert channels.images == 2


def test_a_random_sample_is_measured_and_the_same_for_the_same_seed(made):
    one, same, other = (describe(made, measured=5, seed=seed).splits[0].channels for seed in (1, 1, 2))
    assert one.images == 5
    assert one == same != other
    assert all(0.2 < value < 0.8 for value in one.mean)


def test_as_json_is_plain_and_has_every_class(made):
    text = json.loads(json.dumps(as_json(describe(made))))
    train = text["splits"]["train"]
    assert train["samples"] == 23
    assert train["classes"]["counts"] == {"cat": 6, "dog": 10, "emu": 7}
    assert len(train["channels"]["mean"]) == 3
    assert text["set_aside"] == {"empty": 1}


def test_the_choice_shows_every_class_before_a_second_of_any(made):
    manifest = read_manifest(made)
    for images, counts in (
        (3, [1, 1, 1]),
        (6, [2, 2, 2]),
        (23, [6, 10, 7]),
        (99, [6, 10, 7]),
        (20, [6, 7, 7]),
    ):
        rows = balanced_choice(manifest, images, seed=0)
        assert len(set(rows)) == len(rows)
        assert np.bincount(manifest.label[rows]).tolist() == counts
        assert (np.diff(manifest.label[rows]) >= 0).all()
    assert len(set(manifest.label[balanced_choice(manifest, 2, seed=0)])) == 2


def cells(sheet, columns, lines, px, caption=18):
    for line in range(lines):
        for column in range(columns):
            left, top = 16 + column * (px + 8), 16 + line * (px + 8 + caption)
            yield sheet.crop((left, top, left + px, top + px))


def test_contact_sheet_has_full_rows_of_different_images_with_names_below(made):
    sheet = contact_sheet(made, images=12, cell_px=40)
    assert sheet.size == (4 * 48 - 8 + 32, 3 * 66 - 8 + 32)
    pictures = list(cells(sheet, 4, 3, 40))
    assert all(picture.getcolors(20) is None for picture in pictures)  # no cell is blank
    assert len({picture.tobytes() for picture in pictures}) == 12
    caption = sheet.crop((16, 16 + 40, 56, 16 + 58))
    assert caption.convert("L").getextrema()[0] < 160
    assert sheet.tobytes() == contact_sheet(made, images=12, cell_px=40).tobytes()
    assert sheet.tobytes() != contact_sheet(made, images=12, cell_px=40, seed=1).tobytes()


def test_a_sheet_of_unlabelled_images_of_which_one_does_not_decode(tmp_path, image):
    (tmp_path / "flat").mkdir()
    for i in range(7):
        (tmp_path / f"flat/{i}.jpg").write_bytes(image(i))
    shard_images(tmp_path / "flat", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    path = tmp_path / "out/train" / manifest.shards[0]
    data = bytearray(path.read_bytes())
    data[manifest.offset[3] : manifest.offset[3] + 200] = bytes(200)
    path.write_bytes(data)
    assert read_displayed(manifest, 3, 40) is None
    write_contact_sheet(tmp_path / "out", tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (3 * 136 - 8 + 32, 2 * 136 - 8 + 32)
    assert describe(tmp_path / "out").splits[0].channels.images == 6


def test_an_image_is_shown_upright_and_in_8_bits(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/turned.jpg").write_bytes(image(1, 40, 30, exif=exif))
    deep = io.BytesIO()
    Image.fromarray(np.full((20, 20), 0x8000, np.uint16)).save(deep, "PNG")
    (tmp_path / "odd/deep.png").write_bytes(deep.getvalue())
    shard_images(tmp_path / "odd", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    shown = {manifest.sources([row])[0]: read_displayed(manifest, row, 64) for row in (0, 1)}
    turned, grey = (next(image for name, image in shown.items() if name.endswith(end)) for end in ("jpg", "png"))
    assert turned.size == (30, 40)
    assert grey.mode == "RGB"
    assert abs(grey.getpixel((5, 5))[0] - 128) <= 1


def test_data_card_says_what_is_there_and_nothing_of_the_machine(made, tmp_path):
    card = data_card(made)
    shutil.copytree(made, tmp_path / "elsewhere")
    assert data_card(tmp_path / "elsewhere") == card
    assert str(made) not in card
    assert "- found: 24\n- kept: 23\n- set aside: 1 (1 empty)" in card
    assert "| train | 23 |" in card
    assert read_manifest(made).fingerprint in card
    assert '"jpg;png", "cls"' in card


def test_data_card_front_matter_is_what_the_hub_knows(made):
    import yaml

    _, matter, _ = data_card(made).split("---\n", 2)
    fields = yaml.safe_load(matter)
    features = {feature.pop("name"): feature for feature in fields.pop("dataset_info")["features"]}
    assert list(features) == ["jpg", "png", "cls", "json", "__key__", "__url__"]
    assert features["cls"] == {"dtype": {"class_label": {"names": {"0": "cat", "1": "dog", "2": "emu"}}}}
    assert fields == {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*.tar"}]}],
        "size_categories": ["n<1K"],
        "task_categories": ["image-classification"],
        "tags": ["webdataset"],
    }


def test_class_names_of_any_kind_survive_the_front_matter(tmp_path, tree):
    import yaml

    names = ("- a: 'b'", '"c"\\ #d', "größe 🐟", "no")
    shard_images(tree(tmp_path / "in", 1, names), tmp_path / "out")
    _, matter, _ = data_card(tmp_path / "out").split("---\n", 2)
    features = yaml.safe_load(matter)["dataset_info"]["features"]
    shown = next(feature for feature in features if feature["name"] == "cls")["dtype"]["class_label"]["names"]
    assert tuple(shown.values()) == read_manifest(tmp_path / "out").class_names
