"""Scores of a run: real shards, the real stream, a real (untrained) network; no training."""

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from devices import DEVICE
from drawn import draw_images, shard_images
from safetensors.torch import save_file

from coma.errors import DataError, UsageError
from coma.evaluation.extraction.feature_job import extract_on
from coma.evaluation.extraction.processes import Processes, choose_processes, shares
from coma.evaluation.features import extract, held_out_fifth, pool
from coma.evaluation.probe import logistic_logits
from coma.evaluation.score import HELD_OUT, PROTOCOLS, features_of, held_out_rows, labelled_manifests, score
from coma.evaluation.score_run import score_run
from coma.exports.export import export_run
from coma.exports.scored import append_metrics
from coma.pipeline import Stream
from coma.runs.read import build_model, load_autoencoder
from coma.shards.describe.describe import describe
from coma.shards.tiles.grid import image_of
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard
from coma.training.config.options import PretrainConfig

CONFIG = {"model": "dyvit_tiny", "method": "coma", "views": 2, "image_size": 32, "patch_size": 2}


def _draw(folder: Path, count: int, seed: int) -> None:
    """Bright and dark noise: what any network tells apart."""
    low = 0 if folder.name == "dark" else 150
    size = {"size": lambda i: (40, 36 + i % 5), "name": "{:03d}.jpg"}
    draw_images(folder, count, seed=seed, levels=(low, low + 100), **size)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 30 + 30 images to learn from, 6 + 6 to test on."""
    folder = tmp_path_factory.mktemp("evaluate")
    for split, count in (("train", 30), ("val", 6)):
        for label in ("bright", "dark"):
            _draw(folder / "images" / split / label, count, count + len(label))
    return shard_images(folder / "images", folder / "shards")


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    """A run folder as training leaves it, its weights those of initialisation."""
    torch.manual_seed(0)
    model = build_model(CONFIG)
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-000007"
    checkpoint.mkdir(parents=True)
    save_file(model.state_dict(), checkpoint / "weights.safetensors")
    (run / "checkpoints" / "latest").write_text(checkpoint.name)
    (run / "config.json").write_text(json.dumps({"config": CONFIG, "resolved": {"data": str(data)}}))
    (run / "metrics.jsonl").write_text('{"step": 7, "loss": 0.5}\n')
    return run


@pytest.mark.gpu_too
def test_a_run_is_scored_on_its_own_data_and_the_result_written_down(run, data):
    result = score_run(run, device=DEVICE)
    assert result["probe"] == 100.0
    assert result["knn"] == 100.0
    assert (result["train_images"], result["test_images"], result["tested_on"]) == (60, 12, "val")
    assert 1 <= result["rankme"] <= 60
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 7, "loss": 0.5}
    assert lines[1] == {"step": 7, "probe": 100.0, "knn": 100.0, "rankme": result["rankme"]}


def test_only_what_was_asked_for_is_scored(run):
    result = score_run(run / "checkpoints" / "step-000007", probe=False, device=DEVICE)
    assert "probe" not in result
    assert result["knn"] == 100.0
    assert "probe" not in (run / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_any_number_of_processes_extracts_the_same_features(run, data, monkeypatch):
    """To the last bit, in the manifests' order, and scored alike."""
    extracted = []

    def kept(*arguments):
        extracted.append(extract_on(*arguments))
        return extracted[-1]

    monkeypatch.setattr("coma.evaluation.score_run.extract_on", kept)
    done = []
    scores = score_run(run, batch_size=8, device="cpu", devices=2, progress=lambda *now: done.append(now))
    assert scores == {**score_run(run, batch_size=8, device="cpu"), "processes": 2}
    assert done[-1] == (72, 72)
    assert done == sorted(done)
    autoencoder = load_autoencoder(run)
    (shared,) = extracted
    for manifest, features in zip(labelled_manifests(data), shared, strict=True):
        with Stream(manifest, batch_size=8, training=False, **autoencoder.stream_options()) as stream:
            alone = extract(autoencoder.backbone, stream)
        assert torch.equal(features.x, alone.x)
        assert torch.equal(features.labels, alone.labels)
        assert features.samples.tolist() == list(range(len(manifest)))


def test_processes_are_given_a_device_each():
    assert choose_processes(3, "cpu").devices == ("cpu", "cpu", "cpu")
    assert choose_processes("auto", "cpu").devices == ("cpu",)
    with pytest.raises(UsageError, match="--device mps: this machine has cpu"):
        choose_processes(2, "mps")
    covered = [batch for share in shares(11, Processes(("cpu",) * 2)) for batch in share]
    assert covered == list(range(11))
    assert shares(0, Processes(("cpu",) * 2)) == []
    assert shares(5, Processes(("cpu",))) == [range(5)]


@pytest.mark.gpu_too
@pytest.mark.parametrize("protocol", ["dinov2", "mae"])
def test_a_probe_of_another_protocol_has_a_name_of_its_own(run, monkeypatch, protocol):
    monkeypatch.setattr("coma.evaluation.linear._SGD_STEPS", 100)
    result = score_run(run, knn=False, protocol=protocol, device=DEVICE)
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(line) == {"step", f"probe_{protocol}", "rankme"}
    low, high = result[f"probe_{protocol}_interval"]
    assert low <= result[f"probe_{protocol}"] <= high


@pytest.mark.gpu_too
def test_an_export_has_its_runs_scores_and_stays_as_it_is(run, data, tmp_path):
    config = PretrainConfig(**CONFIG).to_json()
    (run / "config.json").write_text(json.dumps({"config": config, "resolved": {"data": str(data)}}))
    folder = tmp_path / "export"
    export_run(run, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    of_run, of_export = score_run(run, device=DEVICE), score_run(folder, data, device=DEVICE)
    for name in ("step", "probe", "knn", "probe_interval", "test_images", "channels", "device"):
        assert of_export[name] == of_run[name], name
    assert of_export["rankme"] == pytest.approx(of_run["rankme"], abs=0.01)
    assert of_export["metrics"] is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(UsageError, match=r"export is an export, which names no data set"):
        score_run(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(DataError, match="was not written by `coma export`"):
        score_run(folder, data)


def test_features_are_the_pooled_maps_in_the_manifests_order(data):
    torch.manual_seed(0)
    model = build_model(CONFIG)
    model.train()
    train, test, _ = features_of(model, *labelled_manifests(data), batch_size=7)
    assert model.backbone.training
    assert train.x.shape == (60, model.backbone.num_features)
    assert train.x.dtype == torch.float32
    assert train.samples.tolist() == list(range(60))
    again, _, _ = features_of(model, *labelled_manifests(data), batch_size=16)
    torch.testing.assert_close(train.x, again.x, atol=1e-4, rtol=1e-4)
    assert torch.equal(train.labels, again.labels)
    options = model.stream_options()
    with Stream(data, split="val", batch_size=12, training=False, **options) as stream, torch.no_grad():
        batch = next(stream)
        expected = model.backbone.eval().forward_features(batch.images).mean(dim=(1, 2))
    torch.testing.assert_close(test.x, expected, atol=1e-4, rtol=1e-4)
    assert test.labels.tolist() == batch.labels.tolist()


def test_without_val_a_fifth_of_train_is_held_out(tmp_path):
    for label in ("bright", "dark"):
        _draw(tmp_path / "images" / label, 20, len(label))
    shard_images(tmp_path / "images", tmp_path / "shards")
    torch.manual_seed(0)
    scores = score(build_model(CONFIG), *labelled_manifests(tmp_path / "shards"))
    assert (scores.train_images, scores.test_images, scores.tested_on) == (32, 8, HELD_OUT)
    assert scores.knn == 100.0


def test_whole_images_are_held_out_of_tiles():
    image = torch.arange(1000) // 10
    held_out = held_out_fifth(1000, image)
    assert torch.equal(held_out, held_out_fifth(100)[image])
    assert held_out_fifth(4, torch.tensor([7, 3, 3, 7])).tolist() == [False, True, True, False]
    assert not held_out_fifth(4, torch.zeros(4)).any()


def test_the_options_of_a_probe_are_chosen_on_whole_images(tmp_path, monkeypatch):
    source = tmp_path / "images"
    for label, images in (("bright", 4), ("dark", 3)):
        _draw(source / label, images, len(label))
    shard(source, tmp_path / "tiles", ShardOptions(tile=16, workers=1))
    train, val = labelled_manifests(tmp_path / "tiles")
    given = []
    monkeypatch.setitem(PROTOCOLS, "logistic", lambda *rows: given.append(rows) or logistic_logits(*rows))
    scores = score(build_model(CONFIG), train, val)
    ((x, _, _, image),) = given
    names = [image_of(name) for name in train.sources(range(len(train)))]
    learned = [name for name, held_out in zip(names, held_out_rows(train).tolist(), strict=True) if not held_out]
    assert len(image) == len(x) == scores.train_images == len(learned)
    assert len({*zip(image.tolist(), learned, strict=True)}) == len({*learned}) == len({*image.tolist()}) == 6


def test_the_held_out_fifth_is_always_the_same_and_not_regular():
    first = held_out_fifth(1000)
    assert torch.equal(first, held_out_fifth(1000))
    assert first.sum() == 200
    assert first[::5].sum() < 100


def test_tiles_of_one_image_are_not_learned_from_and_tested_on(tmp_path):
    source = tmp_path / "images"
    for label, images in (("bright", 2), ("dark", 1)):
        _draw(source / label, images, len(label))
    shard(source, tmp_path / "tiles", ShardOptions(tile=16, workers=1))
    train, _ = labelled_manifests(tmp_path / "tiles")
    held_out = held_out_rows(train).tolist()
    images: tuple[set[str], set[str]] = (set(), set())
    for row, source_name in enumerate(train.sources(range(len(train)))):
        images[held_out[row]].add(image_of(source_name))
    assert (len(images[0]), len(images[1])) == (2, 1)
    assert not images[0] & images[1]


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_vit_is_pooled_over_its_patch_tokens(prefix):
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=0, class_token=bool(prefix), global_pool="avg"
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.forward_features(images)
        assert tokens.shape[1] == 4 + prefix
        torch.testing.assert_close(pool(vit, images), vit.fc_norm(tokens[:, prefix:].mean(1)))
        torch.testing.assert_close(pool(vit, images), vit(images))


def test_data_without_labels_or_with_one_class_are_refused_before_anything_is_computed(tmp_path, run):
    _draw(tmp_path / "flat", 6, 0)
    shard_images(tmp_path / "flat", tmp_path / "unlabelled")
    with pytest.raises(DataError, match="no labels"):
        score_run(run, tmp_path / "unlabelled")
    _draw(tmp_path / "one" / "dark", 6, 0)
    shard_images(tmp_path / "one", tmp_path / "one-shards")
    with pytest.raises(DataError, match="one class alone"):
        score_run(run, tmp_path / "one-shards")
    with pytest.raises(DataError, match="no run at"):
        score_run(tmp_path / "nowhere")
    assert (run / "metrics.jsonl").read_text().count("\n") == 1


def test_a_data_set_that_has_moved_is_named(run):
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["data"] = "gone/shards"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"gone/shards, which .* was trained on, is not there"):
        score_run(run)


def test_other_data_are_named_in_the_metrics(run, data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    score_run(run, tmp_path / "link", probe=False, device=DEVICE)
    assert "data" not in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    append_metrics(run, {"step": 7, "knn": 1.0, "data": "elsewhere"})
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["data"] == "elsewhere"
    before = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(before + '{"step": 8, "lo')  # a crash
    append_metrics(run, {"step": 9})
    assert (run / "metrics.jsonl").read_text() == before + '{"step": 9}\n'


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_there(run, device):
    with pytest.raises(UsageError, match=f"--device {device}: this machine has cpu and"):
        score_run(run, device=device)


def test_nothing_to_extract_from():
    with pytest.raises(DataError, match="no sample"):
        extract(torch.nn.Identity(), [])


@pytest.mark.gpu_too
def test_labels_may_be_any_numbers(run, data, tmp_path):
    """Such as ids of a data base; a test image of a class that train lacks is simply wrong."""
    names = {"bright": 2_000_000_001, "dark": 7}
    rows = [
        f"{split}/{label}/{path.name},{3 if split == 'val' and path.stem == '000' else number},{split}\n"
        for split in ("train", "val")
        for label, number in names.items()
        for path in sorted((data.parent / "images" / split / label).iterdir())
    ]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(rows))
    shard_images(tmp_path / "list.csv", tmp_path / "sharded", root=data.parent / "images")
    assert describe(tmp_path / "sharded").splits[0].classes.counts == {"7": 30, "2000000001": 30}
    for protocol in ("logistic", "mae"):
        scores = score_run(run, tmp_path / "sharded", device=DEVICE, protocol=protocol)
        assert scores["knn"] == pytest.approx(100 * 10 / 12, abs=0.01)
    assert scores["classes"] == 3


def test_scores_that_cannot_be_kept_are_still_told(run, caplog):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with caplog.at_level(logging.WARNING, "coma"):
        result = score_run(run, probe=False, device=DEVICE)
    assert result["knn"] == 100.0
    assert result["metrics"] is None
    assert "the scores are not kept in" in caplog.text
