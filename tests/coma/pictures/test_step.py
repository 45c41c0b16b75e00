"""What was in a step, computed, is what the trainer saw, recorded and streamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import sharded
from PIL import Image

from coma.errors import DataError, UsageError
from coma.pictures.images import to_pixels
from coma.pictures.step import StepContents, read_step
from coma.pictures.step_sheet import HIDDEN_GREY, network_images, step_sheet, view_tiles, write_step_sheet
from coma.pipeline import Stream
from coma.runs.read import build_model
from coma.shards.manifest import read_manifest
from coma.training import PretrainConfig, pretrain

IMAGES, STEPS, BATCH, DAMAGED = 24, 7, 5, 11  # 35 samples: an epoch ends inside step 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, one image of which is damaged, and a run on it that stopped once."""
    place = tmp_path_factory.mktemp("steps")
    drawing = {"classes": ("class0", "class1"), "size": lambda number: (48 + number, 60 - number)}
    sharded(place, IMAGES, smooth=True, shard_bytes=6_000, **drawing)
    manifest = read_manifest(place / "data")
    assert len(manifest.shards) > 3
    with (manifest.folder / manifest.shards[manifest.shard_id[DAMAGED]]).open("r+b") as file:
        file.seek(int(manifest.offset[DAMAGED]) + 200)
        file.write(b"flipped")
    for stop_after in (3, None):
        pretrain(
            PretrainConfig(
                data=place / "data",
                out=place / "run",
                model="dyvit_nano",
                image_size=32,
                patch_size=2,
                views=3,
                batch_size=BATCH,
                steps=STEPS,
                seed=5,
                workers=1,
                stop_after=stop_after,
            )
        )
    shutil.rmtree(place / "run" / "checkpoints")  # nothing below may need one
    return place


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil; the copied run still means the first data."""
    shutil.copytree(whole, tmp_path / "copy", dirs_exist_ok=True)
    return tmp_path / "copy"


def edit(run: Path, section: str, **fields: Any) -> None:
    content = json.loads((run / "config.json").read_text())
    content[section].update(fields)
    (run / "config.json").write_text(json.dumps(content))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_the_one_that_the_trainer_took(whole: Path) -> None:
    recorded = {line["step"]: line["batch_digest"] for line in lines(whole / "run" / "metrics.jsonl")}
    assert list(recorded) == list(range(1, STEPS + 1))
    stream = Stream(whole / "data", batch_size=BATCH, image_size=32, views=3, unit_size=16, seed=5)
    with stream:
        for step in recorded:
            contents, batch = read_step(whole / "run", step), next(stream)
            assert contents.batch_digest == contents.recorded_digest == recorded[step]
            assert [row.asked.sample for row in contents.rows] == batch.samples.tolist()
            assert [row.epoch for row in contents.rows] == stream.plan(step).epochs.tolist()
            assert batch.labels is not None
            assert [row.shown.label for row in contents.rows] == batch.labels.tolist()
            assert contents.view_sizes == batch.view_sizes == (2, 1, 1)
            for row, units in zip(contents.rows, batch.units, strict=True):
                assert row.views == tuple(tuple(sorted(v.tolist())) for v in units.split([2, 1, 1]))
            for image, streamed in zip(network_images(contents, BATCH), batch.images, strict=True):
                assert image is not None
                assert torch.equal(image, streamed)


def test_rows_say_which_images_they_are(whole: Path) -> None:
    contents = read_step(whole / "run", 2)
    for row in contents.rows:
        assert row.asked.class_name == f"class{row.asked.label}"
        assert row.asked.source.startswith(f"{row.asked.class_name}/")
        with Image.open(whole / "images" / row.shown.source) as image:
            assert 0 <= row.crop.x < row.crop.x + row.crop.width <= image.width
            assert 0 <= row.crop.y < row.crop.y + row.crop.height <= image.height
    assert 0 < sum(row.flipped for step in range(1, 8) for row in read_step(whole / "run", step).rows) < 35


@pytest.mark.parametrize("turning", [{}, {"flips": "both", "quarter_turns": True, "crop_scale": 0.6}])
def test_the_crop_is_the_window_the_flip_and_the_turn_that_are_named(place: Path, turning: dict[str, Any]) -> None:
    edit(place / "run", "config", **turning)
    contents = read_step(place / "run", 3)
    assert bool({row.turned for row in contents.rows} - {0}) == bool(turning)
    for row, image in zip(contents.rows, network_images(contents, BATCH), strict=True):
        crop = row.crop
        with Image.open(place / "images" / row.shown.source) as original:
            window = original.convert("RGB").crop((crop.x, crop.y, crop.x + crop.width, crop.y + crop.height))
        wanted = np.asarray(window.resize((32, 32), Image.Resampling.BILINEAR), np.int16)
        wanted = np.rot90(wanted[:, ::-1] if row.flipped else wanted, row.turned // 90)
        assert image is not None
        assert np.abs(to_pixels(image[None])[0] - wanted).mean() < 2


def test_substituted_images_are_those_of_the_ledger(whole: Path) -> None:
    steps = {step: read_step(whole / "run", step) for step in range(1, STEPS + 1)}
    found = [
        {
            "step": step,
            "key": row.asked.key,
            "shard": row.asked.shard,
            "reason": row.reason,
            "substitute": row.substitute.key,
        }
        for step, contents in steps.items()
        for row in contents.rows
        if row.substitute is not None
    ]
    assert found == lines(whole / "run" / "ledger.jsonl") != []
    assert {line["key"] for line in found} == set(read_manifest(whole / "data").keys([DAMAGED]))
    assert sum(contents.substituted for contents in steps.values()) == len(found)


def test_no_other_step_is_read(place: Path) -> None:
    edit(place / "run", "resolved", data=str(place / "data"))
    contents = read_step(place / "run", STEPS)
    before = step_sheet(contents)
    needed = {row.shown.shard for row in contents.rows}
    unneeded = set(contents.manifest.shards) - needed
    assert unneeded
    for name in unneeded:
        (contents.manifest.folder / name).unlink()
    assert step_sheet(read_step(place / "run", STEPS)).tobytes() == before.tobytes()
    (contents.manifest.folder / needed.pop()).unlink()
    with pytest.raises(DataError, match="coma-train-"):
        step_sheet(contents)


@pytest.mark.parametrize("step", [0, STEPS + 1])
def test_a_step_that_is_none_names_how_many_there_are(whole: Path, step: int) -> None:
    with pytest.raises(UsageError, match=f"has 7 steps: step {step} is none of them"):
        read_step(whole / "run", step)


def test_a_step_that_was_not_taken_has_no_record(place: Path) -> None:
    (place / "run" / "metrics.jsonl").write_text('{"step": 1, "knn": 3.0}\n{"step": 2, "batch_di')
    contents = read_step(place / "run", 1)
    assert (contents.matches, contents.recorded_digest) == (None, None)
    contents.check()
    assert read_step(place / "run", 2).matches is None


def test_other_samples_than_the_run_recorded_are_an_error(place: Path) -> None:
    edit(place / "run", "config", seed=6)
    contents = read_step(place / "run", 2)
    assert contents.matches is False
    assert len(contents.rows) == BATCH
    with pytest.raises(DataError, match=f"{contents.recorded_digest}.*{contents.batch_digest}"):
        contents.check()


def test_moved_and_changed_data_are_refused(place: Path) -> None:
    edit(place / "run", "resolved", data=str(place / "gone"))
    with pytest.raises(DataError, match=r"are not at .*gone any more"):
        read_step(place / "run", 1)
    (place / "gone").symlink_to(place / "data")
    assert read_step(place / "run", 1).matches
    edit(place / "run", "resolved", fingerprint="0123456789abcdef")
    with pytest.raises(DataError, match="0123456789abcdef"):
        read_step(place / "run", 1)


@pytest.mark.parametrize("content", ["{}", '{"model_type": "vit"}', '{"config": {}}', "no JSON"])
def test_another_tools_config_is_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json"):
        read_step(tmp_path, 1)


def test_mae_sees_a_quarter(place: Path) -> None:
    edit(place / "run", "config", method="mae")
    contents = read_step(place / "run", 1)
    assert (contents.view_sizes, contents.units) == ((1,), 4)
    assert len({row.views for row in contents.rows}) > 1


def test_independent_views_are_those_that_the_network_encodes(place: Path) -> None:
    edit(place / "run", "config", method="independent", views=2)
    model = build_model(json.loads((place / "run" / "config.json").read_text())["config"])
    encoded: list[torch.Tensor] = []
    encode = model.encoder.encode_patches
    model.backbone.encode_patches = lambda patches, grid, units, sizes: (  # type: ignore[assignment]
        encoded.extend(units.split(sizes, 1)) or encode(patches, grid, units, sizes)
    )
    with Stream(place / "data", batch_size=BATCH, seed=5, workers=1, **model.stream_options()) as stream:
        batch = next(stream)
    model(batch.images, batch.units)
    rows = read_step(place / "run", 1).rows
    for view, seen in enumerate(encoded):
        assert [row.views[view] for row in rows] == [tuple(sorted(units)) for units in seen.tolist()]
    assert any(set(row.views[0]) & set(row.views[1]) for row in rows)  # no partition


def test_the_json_is_whole(whole: Path) -> None:
    found = json.loads(json.dumps(read_step(whole / "run", 4).to_json()))
    assert (found["step"], found["steps"], found["matches"]) == (4, STEPS, True)
    assert len(found["rows"]) == found["batch_size"] == BATCH
    row = found["rows"][0]
    assert set(row) >= {"sample", "key", "shard", "source", "class_name", "epoch", "flipped", "turned", "views"}
    assert set(row["crop"]) == {"x", "y", "width", "height"}


def test_units_are_visible_in_the_views_that_see_them_and_grey_in_others() -> None:
    pixels = np.random.default_rng(0).integers(0, HIDDEN_GREY, (8, 8, 3), dtype=np.uint8)
    views = ((0, 4, 7), (1, 2, 4, 8), (3, 6))  # 4 in two of them, 5 in none
    crop, *tiles = view_tiles(Image.fromarray(pixels), views, grid=3, tile=12)
    for unit in range(9):
        top, left = unit // 3 * 4, unit % 3 * 4
        for seen, tile in zip(views, tiles, strict=True):
            shown = np.asarray(tile)[top : top + 4, left : left + 4]
            if unit in seen:
                assert (shown == np.asarray(crop)[top : top + 4, left : left + 4]).all()
            else:
                assert (shown == HIDDEN_GREY).all()


def test_the_sheet_survives_an_image_that_is_damaged_since(place: Path) -> None:
    edit(place / "run", "resolved", data=str(place / "data"))
    contents = read_step(place / "run", 1)
    before = step_sheet(contents)
    manifest, sample = contents.manifest, contents.rows[0].shown.sample
    with (manifest.folder / manifest.shards[manifest.shard_id[sample]]).open("r+b") as file:
        file.seek(int(manifest.offset[sample]))
        file.write(bytes(100))
    images = list(network_images(contents, BATCH))
    assert [image is None for image in images] == [True] + [False] * (BATCH - 1)
    assert step_sheet(contents).size == before.size


def test_the_sheet_has_at_most_32_images(whole: Path, tmp_path: Path) -> None:
    def of(count: int) -> StepContents:
        one = read_step(whole / "run", 1)
        return StepContents(**{**vars(one), "rows": (one.rows * 8)[:count]})

    assert step_sheet(of(40)).size == step_sheet(of(33)).size == step_sheet(of(32)).size
    assert write_step_sheet(of(40), tmp_path / "sheet.png") == 32
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.format == "PNG"
    assert write_step_sheet(of(1), tmp_path / "sheet.png") == 1
    with pytest.raises(UsageError, match="absent"):
        write_step_sheet(of(1), tmp_path / "absent" / "sheet.png")
