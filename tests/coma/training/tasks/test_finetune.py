"""Fine-tuning: it learns, goes on to the bit, begins from a run or an export, and its export is timm's classifier."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from devices import DEVICE
from drawn import shard_images
from PIL import Image
from safetensors.torch import load_file
from small_runs import course, lines, same_weights, small, weights_of
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from coma.errors import DataError, UsageError
from coma.evaluation.score_run import score_run
from coma.exports.export import export_run
from coma.model.classifier import Classifier
from coma.pictures.reconstruct import reconstruct_run
from coma.pictures.step import read_step
from coma.pipeline import Stream
from coma.runs.read import load_classifier
from coma.shards.manifest import read_manifest
from coma.training import FinetuneConfig, finetune, pretrain
from coma.training.tasks.augment import Augment, BatchRandAugment
from coma.training.tasks.finetuning import Finetuning
from coma.training.tasks.pretrained import read_backbone

COLOURS = {"blue": (40, 60, 200), "red": (200, 60, 40)}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 red and blue images, a quarter of them in split val."""
    source, out = tmp_path_factory.mktemp("colours"), tmp_path_factory.mktemp("sharded") / "data"
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (source / name).mkdir()
        for number in range(24):
            pixels = np.clip(colour + generator.normal(0, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(source / name / f"{number}.png")
    return shard_images(source, out, val_fraction=0.25)


@pytest.fixture(scope="module")
def source(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step of pre-training."""
    run = tmp_path_factory.mktemp("source") / "run"
    pretrain(small(labelled, run, steps=1))
    return run


def tuning(labelled: Path, source: Path, out: Path, **fields: Any) -> FinetuneConfig:
    given = {"steps": 4, "batch_size": 6, "workers": 1, "ema_decay": 0.5, **fields}
    return FinetuneConfig(source=source, data=labelled, out=out, **given)


@pytest.fixture(scope="module")
def tuned(labelled: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps with all that augments, never interrupted."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    finetune(tuning(labelled, source, run))
    return run


@pytest.mark.gpu_too
def test_it_learns_and_says_how_well(labelled: Path, source: Path, tmp_path: Path) -> None:
    plain = {"rand_augment": 0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    config = tuning(labelled, source, tmp_path / "run", steps=12, base_lr=0.05, layer_decay=1.0, drop_path=0.0, **plain)
    result = finetune(config)
    assert result["finished"]
    assert result["accuracy"] == 100.0
    tested = [line for line in lines(tmp_path / "run") if "accuracy" in line]
    assert [line["step"] for line in tested] == [6, 12]  # after each epoch of 36 images
    assert "accuracy_top5" not in tested[0]  # of two classes
    assert tested[-1]["val_loss"] < tested[0]["val_loss"]
    assert result["steps"] == 12
    assert finetune(config)["accuracy"] == 100.0  # once finished it only says so
    report = (tmp_path / "run" / "report.html").read_text()
    assert "cross-entropy" in report
    assert "accuracy on val" in report


@pytest.mark.gpu_too
@pytest.mark.parametrize("stage", ["zero1", pytest.param("zero3", marks=pytest.mark.slow)])
def test_stopped_and_gone_on_is_to_the_bit_never_stopped(
    labelled: Path, source: Path, tuned: Path, tmp_path: Path, stage: str
) -> None:
    whole = tuned
    if stage != "zero1":
        whole = tmp_path / "whole"
        finetune(tuning(labelled, source, whole, ds_config=stage))
        for mine, its in zip(lines(whole), lines(tuned), strict=True):
            if "loss" in its:
                assert mine["loss"] == pytest.approx(its["loss"], rel=1e-5 if DEVICE == "cpu" else 1e-2)
    config = tuning(labelled, source, tmp_path / "run", ds_config=stage)
    assert not finetune(dataclasses.replace(config, stop_after=2))["finished"]
    assert finetune(config)["finished"]
    assert [step for step, *_ in course(whole)] == [1, 2, 3, 4]
    assert course(tmp_path / "run") == course(whole)
    for name in ("weights", "average"):
        assert same_weights(tmp_path / "run", whole, name)
    head = "backbone.head.fc.weight"
    assert not torch.equal(weights_of(whole, "average")[head], weights_of(whole)[head])


@pytest.mark.slow
def test_a_constant_rate_is_extended_as_if_it_had_been_longer(labelled: Path, source: Path, tmp_path: Path) -> None:
    constant = {"schedule": "constant", "warmup_epochs": 1 / 6, "cooldown_epochs": 1 / 6}  # a step each
    finetune(tuning(labelled, source, tmp_path / "longer", steps=5, **constant))
    config = tuning(labelled, source, tmp_path / "run", steps=3, **constant)
    finetune(dataclasses.replace(config, stop_after=2))
    result = finetune(dataclasses.replace(config, steps=5, extend=True))
    assert (result["steps"], result["finished"]) == (5, True)
    assert course(tmp_path / "run") == course(tmp_path / "longer")
    for name in ("weights", "average"):
        assert same_weights(tmp_path / "run", tmp_path / "longer", name)


def test_a_run_its_checkpoint_and_its_export_begin_alike(labelled: Path, source: Path, tmp_path: Path) -> None:
    export_run(source, tmp_path / "export")
    forms = (source, source / "checkpoints/step-000001", tmp_path / "export")
    assert len({read_backbone(form).digest() for form in forms}) == 1
    trained = load_file(source / "checkpoints/step-000001/weights.safetensors")
    manifest = read_manifest(labelled)
    for form in forms:
        model = Finetuning(tuning(labelled, form, tmp_path / "x"), manifest).model
        assert model.img_size == (32, 32)
        for name, value in model.state_dict().items():
            assert name.startswith("backbone.head") or torch.equal(value, trained[name])
    config = dataclasses.replace(tuning(labelled, source, tmp_path / "run"), steps=2, stop_after=1)
    finetune(config)
    finetune(dataclasses.replace(config, source=tmp_path / "export"))  # the same weights are the same run


def test_a_layer_learns_at_a_share_of_the_rate_of_the_one_above(labelled: Path, source: Path, tmp_path: Path) -> None:
    task = Finetuning(tuning(labelled, source, tmp_path, layer_decay=0.5), read_manifest(labelled))
    scale = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in task.parameter_groups(0.05)
        for parameter in group["params"]
    }
    found = {name: scale[id(parameter)] for name, parameter in task.model.backbone.named_parameters()}
    assert found["head.fc.weight"] == (1.0, 0.05)
    assert found["head.fc.bias"] == (1.0, 0.0)
    layers = [found[f"stages.2.blocks.{block}.mlp.fc1.weight"][0] for block in range(4)]
    assert all(high == 2 * low for low, high in itertools.pairwise(layers))
    assert found["patch_embed.position"][1] == 0.0
    assert found["patch_embed.position"][0] < min(layers)
    assert len(scale) == len(list(task.model.parameters()))


@pytest.mark.gpu_too
def test_augmented_images_are_a_function_of_the_seeds() -> None:
    images, labels = torch.randn(5, 3, 32, 32, device=DEVICE), torch.tensor([0, 1, 2, 0, 1], device=DEVICE)
    before = images.clone()
    config = FinetuneConfig(source=Path("x"), mixup=0.8, cutmix=0.0)
    augment = Augment(config, 3, torch.device(DEVICE))

    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        from coma.training.engine.train_step import seed_step

        seed_step(seed, step=1, rank=0)
        return augment(images, labels)

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(mine, its) for mine, its in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(images, before)
    torch.testing.assert_close(one[1].sum(dim=1).cpu(), torch.ones(5))
    assert one[1][4].argmax() == 1  # the one that is left over stays by itself
    nothing = FinetuneConfig(source=Path("x"), rand_augment=0, erasing=0.0, mixup=0.0, cutmix=0.0, label_smoothing=0.1)
    same, targets = Augment(nothing, 3, torch.device(DEVICE))(images, labels)
    assert torch.equal(same, images)
    torch.testing.assert_close(targets[0].cpu(), torch.tensor([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]))


def test_its_export_is_timms_classifier(labelled: Path, tuned: Path, tmp_path: Path) -> None:
    result = export_run(tuned, tmp_path / "export")
    assert result["classes"] == 2
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    classifier = load_classifier(tuned)
    averaged = weights_of(tuned, "average")
    assert torch.equal(classifier.backbone.head.fc.weight, averaged["backbone.head.fc.weight"])
    with (
        Stream(
            read_manifest(labelled, "val"),
            batch_size=12,
            image_size=32,
            unit_size=16,
            views=1,
            training=False,
        ) as s,
        torch.no_grad(),
    ):
        batch = next(iter(s))
        torch.testing.assert_close(model(batch.images), classifier.logits(batch.images))
        loss = classifier(batch.images, torch.nn.functional.one_hot(batch.labels, 2))
    assert lines(tuned)[-1]["val_loss"] == pytest.approx(float(loss), rel=1e-4)
    content = json.loads((tmp_path / "export/config.json").read_text())
    assert content["label_names"] == ["blue", "red"]
    card = (tmp_path / "export/README.md").read_text()
    assert "fine-tuned on 2 classes" in card
    assert "accuracy, top-1 %" in card
    assert 0 <= score_run(tmp_path / "export", labelled, probe=False)["knn"] <= 100
    with pytest.raises(UsageError, match="has no decoder: leave out --with-decoder"):
        export_run(tuned, tmp_path / "other", with_decoder=True)
    with pytest.raises(DataError, match="is a fine-tuned classifier, which has neither views nor a decoder"):
        reconstruct_run(tuned)


def test_its_steps_can_be_looked_at(tuned: Path) -> None:
    found = read_step(tuned, 2)
    assert found.batch_digest == lines(tuned)[1]["batch_digest"]
    assert len(found.rows) == 6
    assert {len(row.views) for row in found.rows} == {1}
    areas = [row.crop.width * row.crop.height for step in (1, 2, 3, 4) for row in read_step(tuned, step).rows]
    assert min(areas) < 0.2 * 40 * 40  # crops are smaller than pre-training has them


def test_what_cannot_be_is_said_before_anything_is_written(
    data: Path, labelled: Path, source: Path, tmp_path: Path
) -> None:
    good = tuning(labelled, source, tmp_path / "run")
    for fields, complaint in (
        ({"source": tmp_path / "none"}, "no run at"),
        (
            {"image_size": 40},
            "image size 40x40 is not a multiple of the 16-pixel mask unit",
        ),
    ):
        with pytest.raises((DataError, UsageError), match=complaint):
            finetune(dataclasses.replace(good, **fields))
    unlabelled = dataclasses.replace(read_manifest(labelled), label=None, class_names=None)
    with pytest.raises(DataError, match="has no labels to train on"):
        Finetuning(good, unlabelled)
    with pytest.raises(DataError, match="has other classes than"):
        Finetuning(good, dataclasses.replace(read_manifest(labelled), class_names=("one", "two")))
    assert not (tmp_path / "run").exists()
    finetune(dataclasses.replace(good, data=data, steps=1))  # without a split val there is nothing to test on
    assert not any("accuracy" in line for line in lines(tmp_path / "run"))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"mixup": -1.0}, "--mixup is -1.0"),
        ({"layer_decay": 0.0}, "--layer-decay is 0.0"),
        ({"ema_decay": 1.0}, "--ema-decay is 1.0"),
        ({"rand_augment": 31}, "--rand-augment is 31; it must be from 0 to 30"),
        ({"crop_scale": float("nan")}, "--crop-scale is nan"),
        ({"epochs": 1.0, "steps": 1}, "exclude each other"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        FinetuneConfig(source=Path("x"), **fields)


def test_a_plain_vit_is_fine_tuned_too() -> None:
    model = Classifier("vit_tiny_patch16_224", 3, img_size=32)
    targets = torch.eye(3)
    loss = model(torch.randn(3, 3, 32, 32), targets).detach()
    assert float(loss) == pytest.approx(np.log(3), rel=1e-3)  # all classes alike at first
    assert model.crop_unit == 16


def test_randaugment_of_a_batch_is_torchvisions_of_each_image() -> None:
    options: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": [10, 20, 30]}
    batched, single = BatchRandAugment(2, 9, **options), RandAugment(1, 9, **options)
    drawn = [(name, sign) for name in batched._AUGMENTATION_SPACE for sign in (0, 1)]
    images = torch.randint(0, 256, (len(drawn), 3, 24, 32), dtype=torch.uint8)
    names, signs = zip(*drawn, strict=True)
    changed = batched.changed(images, names, signs)
    for image, name, sign, found in zip(images, names, signs, changed, strict=True):
        single._AUGMENTATION_SPACE = {name: batched._AUGMENTATION_SPACE[name]}
        with mock.patch("torch.rand", return_value=torch.tensor(0.2 if sign else 0.8)):  # which draws the sign
            assert torch.equal(found, single(image)), (name, sign)
    torch.manual_seed(1)
    several = batched(images)
    assert several.shape == images.shape
    assert len({tuple(image.flatten().tolist()) for image in batched(images[:1].expand(64, -1, -1, -1))}) > 32
    torch.manual_seed(1)
    assert torch.equal(several, batched(images))
