"""Segmentation from frozen maps: real shards with masks, the real stream, a real (untrained) network."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from devices import DEVICE
from drawn import shard_images, sharded
from masked import draw_pairs
from untrained_runs import write_run

from coma.errors import DataError, DivergedError, UsageError
from coma.evaluation.dense.maps import default_stride, dense_maps, map_channels
from coma.evaluation.dense.reading import WindowReader
from coma.evaluation.dense.segment import DenseOptions, _split_windows, labelled_patches, masked_manifests, segment
from coma.evaluation.dense.segment_run import segment_by
from coma.evaluation.dense.windows import whole_images
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.pipeline.masks import MaskReader
from coma.runs.read import load_autoencoder

SIZE, CLASSES = 32, 4
FEW = {"neighbours": (5,), "distances": ("cosine",), "penalties": (1e-2,)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of blocks whose colours tell the class, with masks: 40 to learn from, 12 to test on."""
    folder = tmp_path_factory.mktemp("masked")
    draw_pairs(folder / "drawn", 40, images="images/train/{}.jpg", masks="masks/train/{}.png")
    draw_pairs(folder / "drawn", 12, images="images/val/{}.jpg", masks="masks/val/{}.png", first=50)
    return shard_images(folder / "drawn", folder / "shards")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights."""
    return write_run(tmp_path_factory.mktemp("run") / "run", image_size=SIZE, patch_size=2)


@pytest.fixture(scope="module")
def model(run: Path):
    return load_autoencoder(run, DEVICE)


def _segment(model, data: Path, options: DenseOptions, **how):
    given = {"stream_options": model.stream_options(), "batch_size": 16, "device": DEVICE, **how}
    return segment(model.backbone, *masked_manifests(data), options, **given)


@pytest.mark.gpu_too
def test_logistic_regression_is_within_half_a_point_of_scikit_learns(model, data):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, jaccard_score
    from sklearn.preprocessing import StandardScaler

    train, val = masked_manifests(data)
    l2, stride = FEW["penalties"][0], 4
    options = DenseOptions(heads=("logistic",), stride=stride, **FEW)
    overlap = _segment(model, data, options).overlaps["logistic"]
    with MaskReader(train) as masks, MaskReader(val) as val_masks:
        common = (SIZE, stride, DEVICE, model.stream_options())
        learn = WindowReader(model.backbone, train, whole_images(train.width, train.height), masks, *common)
        test = WindowReader(model.backbone, val, whole_images(val.width, val.height), val_masks, *common)
        patches = labelled_patches(learn, CLASSES, 10**6)
        batches = list(test.batches(16))
    scaler = StandardScaler().fit(patches.x.numpy())
    reference = LogisticRegression(C=1 / (l2 * len(patches)), max_iter=5000)
    reference.fit(scaler.transform(patches.x.numpy()), patches.classes.numpy())
    true, predicted = [], []
    for batch in batches:
        b, c, h, w = batch.maps.shape
        rows = batch.maps.permute(0, 2, 3, 1).reshape(-1, c).cpu().numpy()
        classes = reference.predict(scaler.transform(rows)).reshape(b, h, w)
        predicted.append(classes.repeat(SIZE // h, axis=1).repeat(SIZE // w, axis=2).ravel())
        true.append(batch.truth.cpu().numpy().ravel())
    true, predicted = np.concatenate(true), np.concatenate(predicted)
    counted = true != 255
    expected = 100 * jaccard_score(true[counted], predicted[counted], average="macro")
    assert 40 < expected < 97  # a figure that could move
    assert overlap.miou == pytest.approx(expected, abs=0.5)
    assert overlap.pixel_accuracy == pytest.approx(100 * accuracy_score(true[counted], predicted[counted]), abs=0.5)


@pytest.mark.gpu_too
def test_the_same_twice_whatever_the_batch_and_the_mode_is_put_back(model, data):
    options = DenseOptions(**FEW, stride=4, most_patches=2000)
    model.train()
    first, again = (_segment(model, data, options) for _ in range(2))
    assert model.backbone.training
    model.eval()
    assert first.to_json() == again.to_json()
    assert first.metrics_line(3) == again.metrics_line(3)
    other = _segment(model, data, options, batch_size=5)
    for name, overlap in first.overlaps.items():
        assert other.overlaps[name].miou == pytest.approx(overlap.miou, abs=1)
    assert (first.train_images, first.test_images, first.tested_on) == (40, 12, "val")
    assert first.patches <= 2000
    assert all(overlap.miou > 40 for overlap in first.overlaps.values())  # by chance it is 14


def test_nothing_of_the_test_is_learned_from(data):
    train, _ = masked_manifests(data)
    for shorter_side in (None, SIZE):
        learned, tested = _split_windows(train, None, SIZE, shorter_side)
        assert not set(learned.image) & set(tested.image)
        assert set(learned.image) | set(tested.image) == set(range(40))
        assert len(set(tested.image)) == 8


@pytest.mark.gpu_too
@pytest.mark.parametrize("kept_bytes", [0, 2**31])
def test_a_linear_layer_of_pixels_slides_over_images(model, data, monkeypatch, kept_bytes):
    """It is scored at the size of the masks; maps that are too many to keep are computed anew."""
    monkeypatch.setattr("coma.evaluation.dense.segment._KEPT_BYTES", kept_bytes)
    monkeypatch.setattr("coma.evaluation.dense.pixel_head.PASSES", 3)
    monkeypatch.setattr("coma.evaluation.dense.pixel_head.LEAST_STEPS", 30)
    _, val = masked_manifests(data)
    scores = _segment(model, data, DenseOptions(heads=("dinov2",), shorter_side=40))
    overlap = scores.overlaps["dinov2"]
    with MaskReader(val) as masks:
        expected = [int((mask != 255).sum()) for mask in masks.read(range(12))]
    assert overlap.counts[:, 2].sum(dim=1).tolist() == expected
    assert overlap.miou > 30
    assert scores.patches is None


def test_patches_are_the_same_number_of_each_image(model, data):
    train, _ = masked_manifests(data)
    with MaskReader(train) as masks:
        windows = whole_images(train.width, train.height)
        reader = WindowReader(model.backbone, train, windows, masks, SIZE, 8, DEVICE, model.stream_options())
        few, fewer = labelled_patches(reader, CLASSES, 250), labelled_patches(reader, CLASSES, 10)
    assert torch.bincount(few.images).tolist() == [6] * 40
    assert fewer.images.tolist() == list(range(0, 40, 4))


def test_a_run_is_scored_and_the_result_written_down(run, data):
    result = segment_by(ProbeOptions(run=run, data=data, task="segmentation", patches=500, device=DEVICE))
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(line) == {"step", "miou", "pixel_accuracy", "miou_knn", "pixel_accuracy_knn", "data"}
    assert result | line == result
    assert (result["window_size"], result["stride"], result["shorter_side"]) == (SIZE, 8, None)
    low, high = result["miou_interval"]
    assert low <= result["miou"] <= high
    rows = result["class_iou"]
    assert [row["class"] for row in rows] == ["0", "1", "2", "3"]
    assert result["miou"] == pytest.approx(np.mean([row["iou"] for row in rows]), abs=0.01)
    assert sum(row["share"] for row in rows) == pytest.approx(100, abs=0.01)
    alone = segment_by(KnnOptions(run=run, data=data, task="segmentation", patches=500, device=DEVICE))
    assert alone["miou_knn"] == result["miou_knn"]
    assert "miou" not in alone
    larger = segment_by(KnnOptions(run=run, data=data, task="segmentation", patches=500, window_size=64, stride=16))
    assert (larger["window_size"], larger["stride"]) == (64, 16)


def test_data_without_masks_are_refused(tmp_path, run, data):
    plain = sharded(tmp_path, 8)
    with pytest.raises(DataError, match=r"train has no masks, so nothing can be segmented: shard images with masks"):
        segment_by(KnnOptions(run=run, data=plain, task="segmentation"))


def test_a_damaged_image_is_not_replaced_by_another(model, data):
    train, val = masked_manifests(data)
    hashes = val.xxh3_64.copy()
    hashes[3] += np.uint64(1)
    damaged = dataclasses.replace(val, xxh3_64=hashes)
    with pytest.raises(DataError, match=r"^one sample of .*, and no other may stand in .*; find it with: coma"):
        segment(
            model.backbone,
            train,
            damaged,
            DenseOptions(heads=("knn",), **FEW, most_patches=100),
            stream_options=model.stream_options(),
            device=DEVICE,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 4}, "--stride is for windows of images with masks: give --task segmentation"),
        ({"task": "segmentation", "protocol": "mae"}, "segmentation has logistic and dinov2"),
        ({"task": "segmentation", "protocol": "dinov2", "patches": 9}, "--patches is for --protocol logistic"),
        ({"task": "pixels"}, "--task is 'pixels'; it must be classification or segmentation"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ProbeOptions(run=Path("run"), **options)


@pytest.mark.parametrize(
    ("name", "size", "channels", "stride"),
    [
        ("dyvit_nano", 64, None, 16),
        ("vit_tiny_patch16_224", 64, 192, 16),
        ("resnet18", 64, 64 + 64 + 128 + 256 + 512, 16),
    ],
)
def test_maps_of_any_backbone(name, size, channels, stride):
    torch.manual_seed(0)
    options = {} if name == "resnet18" else {"img_size": size}
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    assert default_stride(backbone) == stride
    images = torch.randn(2, 3, size, size)
    maps = dense_maps(backbone, images)
    channels = channels or sum(backbone.stage_dims)
    assert maps.shape == (2, channels, size // stride, size // stride)
    assert map_channels(backbone) == channels
    assert dense_maps(backbone, images, 8).shape[2:] == (size // 8, size // 8)
    with pytest.raises(UsageError, match="--stride 24 does not divide a window of 64 x 64 pixels"):
        dense_maps(backbone, images, 24)
    images[1] = torch.nan
    with pytest.raises(DivergedError, match="not finite"):
        dense_maps(backbone, images)


def test_the_stages_lie_above_each_other():
    torch.manual_seed(0)
    backbone = timm.create_model("dyvit_nano", num_classes=0, img_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, _, third, last = backbone.forward_intermediates(images, norm=True, intermediates_only=True)
    maps = dense_maps(backbone, images)
    dims = backbone.stage_dims
    torch.testing.assert_close(maps[0, : dims[0], 1, 2], first[0, :, 4:8, 8:12].mean(dim=(1, 2)))
    torch.testing.assert_close(maps[:, sum(dims[:2]) : sum(dims[:3])], third)
    torch.testing.assert_close(maps[0, sum(dims[:3]) :, 0, 0], last[0, :, 0, 0])  # interpolated within the corner
