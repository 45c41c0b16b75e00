"""`coma shard --channels N`: samples at their own depth, with exact statistics, through every way to shards."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrays import write_arrays
from drawn import encoded
from killed_shards import shard_until_killed
from masked import as_png, draw_ids

from coma.errors import DataError, UsageError
from coma.shards.check.verify import verify
from coma.shards.describe.card import data_card
from coma.shards.describe.contact_sheet import contact_sheet
from coma.shards.describe.describe import as_json, describe
from coma.shards.images.arrays import read_window
from coma.shards.manifest import read_info, read_manifest
from coma.shards.sources.folders import list_folder
from coma.shards.sources.tars import list_tars
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

OPTIONS = ShardOptions(channels=5, shard_bytes=20_000, workers=1)


def stored(data: Path) -> dict[str, np.ndarray]:
    """Every sample as it is read out of its shard, by the path of its source."""
    manifest = read_manifest(data)
    rows = list(range(len(manifest)))
    arrays = {}
    for row, source, kind in zip(rows, manifest.sources(rows), manifest.formats(rows), strict=True):
        shard_path = manifest.folder / manifest.shards[manifest.shard_id[row]]
        at, size = int(manifest.offset[row]), int(manifest.size[row])
        sides = int(manifest.height[row]), int(manifest.width[row])
        arrays[source] = read_window(shard_path.read_bytes()[at : at + size], kind, 0, 0, *sides)
    return arrays


def reasons(data: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in pq.read_table(data / "quarantine.parquet").to_pylist()}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A source with samples that do not fit, its samples that do, and the data set that is made of it."""
    folder = tmp_path_factory.mktemp("scenes")
    good = write_arrays(folder / "scenes")
    a = folder / "scenes/a"
    np.save(a / "float.npy", np.zeros((20, 20, 5), np.float32))
    np.save(a / "three.npy", np.zeros((20, 20, 3), np.uint16))
    np.save(a / "wide.npy", np.zeros((20, 20, 5), np.int64))
    (a / "cut.npy").write_bytes((a / "0.npy").read_bytes()[:-9])
    (a / "photo.jpg").write_bytes(encoded(0, 16, 16))
    (a / "notes.txt").write_text("x")
    np.save(a / "first.npy", np.ascontiguousarray(np.moveaxis(good["a/0.npy"], 2, 0)))
    good["a/first.npy"] = good["a/0.npy"]
    summary = shard(folder / "scenes", folder / "out", OPTIONS)
    return folder / "scenes", good, folder / "out", summary


def test_samples_are_what_they_were(scenes):
    source, good, out, summary = scenes
    arrays = stored(out)
    assert arrays.keys() == good.keys()
    assert all(arrays[path].dtype == np.uint16 and np.array_equal(arrays[path], good[path]) for path in good)
    assert summary.converted == {".npy of shape [C, H, W]": 1}
    assert summary.kept == len(good)
    manifest = read_manifest(out)
    for row, path in enumerate(manifest.sources(range(len(manifest)))):  # but for that one, byte for byte
        if path != "a/first.npy":
            at, size = int(manifest.offset[row]), int(manifest.size[row])
            tar = (manifest.folder / manifest.shards[manifest.shard_id[row]]).read_bytes()
            assert tar[at : at + size] == (source / path).read_bytes()
    assert verify(out, decode=True).problems == ()


def test_what_does_not_fit_is_set_aside_by_name(scenes):
    _, good, out, summary = scenes
    assert reasons(out) == {
        "a/float.npy": "other type: float32, where the data set has uint16 (--dtype)",
        "a/three.npy": "other channels: 3 channels, where --channels says 5",
        "a/wide.npy": "unsupported format: values of int64, where coma reads uint8, uint16, int16, float32; save it as "
        "one of them",
        "a/cut.npy": "truncated: it ends 9 bytes before its array does",
        "a/photo.jpg": "unsupported format: JPEG, where --channels reads TIFF, PNG and .npy",
    }
    assert summary.found == len(good) + 5
    assert summary.passed_over == {".txt": 1}


def test_statistics_are_those_of_all_values(scenes):
    _, good, out, _ = scenes
    pixels = read_manifest(out).pixels
    values = np.concatenate([array.reshape(-1, 5) for array in good.values()]).astype(np.float64)
    assert pixels.identity == "5 channels of uint16"
    assert pixels.mean == pytest.approx(values.mean(axis=0), rel=1e-12)
    assert pixels.std == pytest.approx(values.std(axis=0), rel=1e-12)
    assert pixels.least == tuple(values.min(axis=0))
    assert np.array(pixels.quantiles) == pytest.approx(np.percentile(values, np.linspace(0, 100, 1001), axis=0).T)
    assert read_info(out)["coma"]["splits"]["train"]["pixels"] == pixels.summary()


def test_any_number_of_workers_and_of_parts_gives_the_same_bytes(scenes, tmp_path, contents):
    source, _, out, _ = scenes
    shard(source, tmp_path / "two", ShardOptions(channels=5, shard_bytes=20_000, workers=2))
    for number in (2, 1):
        shard(source, tmp_path / "parts", ShardOptions(channels=5, shard_bytes=20_000, workers=1, part=(number, 2)))
    assert contents(tmp_path / "two") == contents(tmp_path / "parts") == contents(out)


# In a worker: 1 index, 2 counts of values, 3 part, 4 tar of the first shard, 5 ... the second.
@pytest.mark.parametrize(
    "instant", ["worker:7", *(pytest.param(f"worker:{n}", marks=pytest.mark.slow) for n in (2, 3, 4, 8))]
)
def test_killed_at_any_instant_a_run_goes_on(scenes, tmp_path, contents, instant):
    source, _, expected, _ = scenes
    shard_until_killed(source, tmp_path / "out", instant, channels=5, shard_bytes=20_000, workers=1)
    shard(source, tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(expected)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["scenes.tar", pytest.param("list.csv", marks=SLOW), pytest.param("rows.parquet", marks=SLOW)]
)
def test_tars_lists_and_parquet_give_the_same_samples(scenes, tmp_path, name):
    source, good, _, _ = scenes
    paths = sorted(good)
    if name == "scenes.tar":
        with tarfile.open(tmp_path / name, "w") as tar:
            for path in paths:
                tar.add(source / path, path)
    elif name == "list.csv":
        (tmp_path / name).write_text("path,label\n" + "".join(f"{path},{path[0]}\n" for path in paths))
    else:
        rows = [{"bytes": (source / path).read_bytes(), "path": path} for path in paths]
        pq.write_table(pa.table({"image": rows, "label": [path[0] for path in paths]}), tmp_path / name)
    root = {"root": source} if name == "list.csv" else {}
    summary = shard(tmp_path / name, tmp_path / "out", ShardOptions(channels=5, workers=1, **root))
    assert (summary.kept, summary.set_aside, summary.classes) == (len(paths), 0, 2)
    expected = sorted(array.tobytes() for array in good.values())
    assert sorted(array.tobytes() for array in stored(tmp_path / "out").values()) == expected


def test_the_shards_are_a_source_themselves(scenes, tmp_path):
    """Made anew, as .npy: the samples of a WebDataset's tars."""
    _, good, out, _ = scenes
    summary = shard(
        out / "train", tmp_path / "again", ShardOptions(channels=5, uncompressed=True, workers=1, layout="webdataset")
    )
    assert summary.converted == {"uncompressed": sum(path.endswith(".tif") for path in good)}
    assert sorted(array.tobytes() for array in stored(tmp_path / "again").values()) == sorted(
        array.tobytes() for array in good.values()
    )
    assert read_manifest(tmp_path / "again").pixels == read_manifest(out).pixels


def test_the_type_is_that_of_the_first_image_or_the_one_asked_for(scenes, tmp_path):
    source, _, _, _ = scenes
    summary = shard(source, tmp_path / "out", ShardOptions(channels=5, dtype="float32", workers=1))
    assert (summary.kept, summary.pixels.dtype) == (1, "float32")
    with pytest.raises(DataError, match=r"none of the 18 images .* fits --channels 7; a/0\.npy is set aside: other "):
        shard(source, tmp_path / "none", ShardOptions(channels=7, workers=1))


def test_values_that_are_not_finite_are_set_aside_by_name(tmp_path):
    array = np.ones((8, 8), np.float32)
    for number, value in enumerate((1, np.nan, np.inf)):
        array[2, :3] = value
        (tmp_path / "s").mkdir(exist_ok=True)
        np.save(tmp_path / f"s/{number}.npy", array)
    summary = shard(tmp_path / "s", tmp_path / "out", ShardOptions(channels=1, workers=1))
    assert (summary.kept, summary.reasons) == (1, {"not finite": 2})
    assert reasons(tmp_path / "out")["s/1.npy".removeprefix("s/")].startswith("not finite: 3 of 64 values are NaN")


def test_files_without_an_extension_are_told_by_their_first_bytes(tmp_path):
    (tmp_path / "s").mkdir()
    np.save(tmp_path / "s/0.npy", np.ones((8, 8), np.float32))
    (tmp_path / "s/0.npy").rename(tmp_path / "s/IM0001")
    (tmp_path / "s/IM0002").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "s/other").write_bytes(bytes(200))
    for arrays, images in ((True, {"IM0001", "IM0002"}), (False, set())):
        listing, beside = list_folder(tmp_path / "s", arrays=arrays)
        assert set(listing.paths) == images
        assert set(beside.paths) == {"IM0001", "IM0002", "other"} - images
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "s", "s")
    assert len(list_tars(tmp_path, ["s.tar"], arrays=True)[0]) == 2


def test_a_change_of_the_options_is_refused_by_name(scenes):
    source, _, out, _ = scenes
    with pytest.raises(UsageError, match="--channels 5, not 4"):
        shard(source, out, ShardOptions(channels=4, shard_bytes=20_000, workers=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 33}, "--channels is 33; it must be from 1 to 32"),
        ({"channels": 3, "resize_px": 64}, "--resize 64 makes 8-bit JPEGs, and --channels 3 keeps all values"),
        ({"channels": 3, "check": "header"}, "--check header does not read the values"),
        ({"dtype": "uint16"}, "--dtype uint16 only matters with --channels N"),
        ({"uncompressed": True}, "--uncompressed only matters with --channels N"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(UsageError, match=message):
        ShardOptions(**options)


def test_verify_finds_a_sample_of_another_kind(scenes, tmp_path, contents):
    """A manifest that says something else than the samples' headers."""
    _, _, out, _ = scenes
    for path, data in contents(out).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    table = pq.read_table(tmp_path / "train/manifest.parquet")
    metadata = {key: value.replace(b'"uint16"', b'"int16"') for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train/manifest.parquet")
    problems = verify(tmp_path, decode=True).problems
    other = [one.key for one in problems if "5 channels of uint16, not 5 of int16" in one.reason]
    assert len(other) == len(read_manifest(out))
    for name in ("fingerprint", "pixels"):
        assert any(f"{name} is not that of the manifest" in one.reason for one in problems)


def test_descriptions_name_channels_and_statistics(scenes):
    _, _, out, _ = scenes
    pixels = read_manifest(out).pixels
    described = as_json(describe(out))["splits"]["train"]
    assert described["pixels"] == pixels.summary()
    assert described["channels"] is None
    card = data_card(out)
    assert "5 channels of uint16" in card
    assert f"| 5 | {pixels.mean[4]:.6g} | {pixels.std[4]:.6g} |" in card
    sheet = contact_sheet(out, channels=(4, 3, 2))
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100
    with pytest.raises(UsageError, match="there is no channel 6; the samples have 5"):
        contact_sheet(out, channels=(6, 2, 1))


def test_masks_go_with_samples_of_any_channels(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / "s" / folder).mkdir(parents=True)
    for number in range(4):
        np.save(tmp_path / f"s/images/{number}.npy", np.full((12, 15, 2), 7 * number, np.int16))
        (tmp_path / f"s/masks/{number}.png").write_bytes(as_png(draw_ids(number, 15, 12)))
    summary = shard(tmp_path / "s", tmp_path / "out", ShardOptions(channels=2, workers=1))
    assert summary.kept == 4
    assert read_manifest(tmp_path / "out").has_masks
    assert verify(tmp_path / "out", decode=True).problems == ()


def test_without_channels_nothing_is_taken_otherwise(tmp_path, caplog):
    """A .npy is passed over, a TIFF of five channels is set aside, and both are told the way out."""
    write_arrays(tmp_path / "s", per_class=1, classes=("a",))
    with pytest.raises(DataError, match=r"no images in .*1 \.npy.*--channels N takes \.npy and DICOM of N channels"):
        shard(tmp_path / "s", tmp_path / "out")
    write_arrays(tmp_path / "t", per_class=2, classes=("a",))
    (tmp_path / "t/a/photo.jpg").write_bytes(encoded(0, 16, 16))
    summary = shard(tmp_path / "t", tmp_path / "out-t", ShardOptions(workers=1))
    assert (summary.kept, summary.pixels, summary.passed_over) == (1, None, {".npy": 1})
    assert "1 image is set aside for channels or depth; --channels 5 takes such as they are" in caplog.text
    assert reasons(tmp_path / "out-t") == {
        "a/1.tif": "unsupported format: TIFF of 5 channels of 16 bits (coma shard --channels 5 takes it as it is)"
    }
    assert b"coma.pixels" not in (tmp_path / "out-t/train/manifest.parquet").read_bytes()
