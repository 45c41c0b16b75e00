"""The comparison of epochs runs, goes on where it stopped, and judges rightly; its figures are not for a test."""

import dataclasses
import json
import math
import runpy
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from drawn import draw_images, shard_images
from helpers.commands import alive, begin, descendants, wait_until
from PIL import Image
from torch.nn import functional as F

from benchmarks.epochs import __main__ as command
from benchmarks.epochs import variants
from benchmarks.epochs.images import HELD_OUT, evaluation_batches, load_to_choose, load_to_compare, training_batches
from benchmarks.epochs.levers import ORIENTATIONS, Levers, _contrast, _gradient_histograms, _low_pass, permuted_units
from benchmarks.epochs.report import Crossing, Row, conclusions, crossing, verdicts
from benchmarks.epochs.runs import (
    RUNS_NAME,
    Settings,
    append_line,
    line_of,
    macs_per_image,
    read_lines,
    train,
)
from benchmarks.epochs.variants import CHOSEN, VARIANTS, chosen, variant
from coma.errors import UsageError
from coma.evaluation.features import extract
from coma.pipeline import Stream


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of two classes to learn from, 20 to test on."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 32), ("test", 10)):
        for label in range(2):
            levels = (100 * label, 100 * label + 128)
            draw_images(root / split / f"class-{label}", count, size=(32, 32), name="{}.png", levels=levels)
    return shard_images(root, root.parent / "shards")


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that train in a moment, under the names of the real ones."""
    vit = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 1}
    dyvit = variants.DYVIT | {"dims": (8, 16, 32), "depths": (1, 1, 1), "head_dims": (8, 8, 32)}
    dyvit["heads"] = (((16, 1),), ((4, 1),), ((None, 1),))
    mae = dataclasses.replace(VARIANTS["mae"], backbone=vit, decoder_depth=1, decoder_dim=32, batch_size=16)
    coma = dataclasses.replace(VARIANTS["coma"], backbone=dyvit, decoder_dim=32, batch_size=16)
    monkeypatch.setitem(VARIANTS, "mae", mae)
    monkeypatch.setitem(VARIANTS, "coma", coma)
    monkeypatch.setattr(command, "REFERENCES", ("mae",))
    for name in ("mae", "coma"):
        monkeypatch.setitem(CHOSEN, name, name)
    monkeypatch.setitem(CHOSEN, "mae-masks", "mae:masks=2,batch_size=8")
    monkeypatch.setitem(CHOSEN, "coma-8", "coma:batch_size=8")


@pytest.mark.usefixtures("miniature")
def test_the_command_runs_and_goes_on_where_it_stopped(data, tmp_path, capsys):
    arguments = ["compare", str(data), "--out", str(tmp_path), "--mae-epochs", "1", "--seeds", "0", "--jobs", "1"]
    command.main([*arguments, "--fractions", "0.5"])
    lines = read_lines(tmp_path)
    named = [(line["settings"]["variant"]["name"], line["settings"]["scored_after"]) for line in lines]
    assert named == [("mae", [0.5, 1.0]), ("coma", [0.5])]
    assert all(line["settings"]["tested_on"] == "test" and line["wall_s"] > 0 for line in lines)
    assert [line["images_seen"] for line in lines] == [64, 32]
    half, whole = lines[0]["curve"]
    assert (half["epochs"], whole["epochs"], whole["macs"]) == (0.5, 1.0, 2 * half["macs"])
    assert 0 < half["cpu_s"] < whole["cpu_s"]
    printed = capsys.readouterr()
    assert "coma" in printed.out
    assert "hours of one core" in printed.err
    with Image.open(tmp_path / "epochs.png") as picture:
        assert picture.size == (1200, 560)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 4  # axes, and a colour for each variant

    with (tmp_path / RUNS_NAME).open("a") as file:
        file.write('{"settings": {"torn')  # by a kill
    compared = ["--variant", "coma", "--variant", "coma-8", "--reference", "mae", "--reference", "mae-masks"]
    command.main([*arguments, "--fractions", "0.5", *compared])
    again = read_lines(tmp_path)
    assert again[:2] == lines  # not run again
    named = [(line["settings"]["variant"]["name"], line["settings"]["scored_after"]) for line in again[2:]]
    assert named == [("mae-masks", [0.5, 1.0]), ("coma-8", [0.5])]
    assert "2 of them done before" in capsys.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["variant"], row["epochs"]) for row in summary["rows"]] == [
        ("mae", 0.5),
        ("mae", 1),
        ("mae-masks", 0.5),
        ("mae-masks", 1),
        ("coma", 0.5),
        ("coma-8", 0.5),
    ]
    assert [(verdict["reference"], verdict["variant"]) for verdict in summary["verdicts"]] == [
        ("mae", "coma"),
        ("mae", "coma-8"),
        ("mae-masks", "coma"),
        ("mae-masks", "coma-8"),
    ]


@pytest.mark.usefixtures("miniature")
def test_a_score_on_the_way_is_that_of_a_shorter_run(data):
    held = load_to_compare(data, 1000)
    settings = Settings(VARIANTS["coma"], 1, 1.0, (0.5, 1.0), 64, 32, "", "")
    shorter = dataclasses.replace(settings, epochs=0.5, scored_after=(0.5,))
    on_the_way, alone = (train(run, held, lambda text: None)["curve"][0] for run in (settings, shorter))
    assert {**on_the_way, "cpu_s": 0} == {**alone, "cpu_s": 0}


def test_a_longer_run_answers_for_a_shorter_one_but_not_at_a_cosine():
    long = Settings(VARIANTS["coma"], 1, 2.0, (0.5, 1.0, 2.0), 64, 32, "", "")
    short = dataclasses.replace(long, epochs=1.0, scored_after=(0.5, 1.0))
    curve = [{"epochs": at, "probe": 10 * at} for at in long.scored_after]
    line = {"settings": long.to_json(), "curve": curve}
    assert line_of([line], long) == line
    assert line_of([line], short) == {**line, "curve": curve[:2]}
    for other in (
        dataclasses.replace(short, seed=2),
        dataclasses.replace(short, scored_after=(0.25, 1.0)),
        dataclasses.replace(short, variant=dataclasses.replace(VARIANTS["coma"], lr=2e-3)),
    ):
        assert line_of([line], other) is None
    cosine = dataclasses.replace(VARIANTS["coma"], schedule="cosine")
    line = {"settings": dataclasses.replace(long, variant=cosine).to_json(), "curve": curve}
    assert line_of([line], dataclasses.replace(short, variant=cosine)) is None


def test_a_cosine_takes_a_run_for_each_length():
    cosine = dataclasses.replace(VARIANTS["coma"], schedule="cosine")
    options = {"mae_epochs": 40, "fractions": [0.25, 0.1], "seeds": [7], "images": 10, "image_size": 32}
    runs = list(command.plan([VARIANTS["mae"]], [cosine], **options, data="", tested_on=""))
    assert [(run.variant.method, run.scored_after) for run in runs] == [
        ("mae", (4.0, 10.0, 40)),
        ("coma", (10.0,)),
        ("coma", (4.0,)),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("miniature")
def test_runs_side_by_side_are_those_one_by_one(data, tmp_path):
    for jobs in ("1", "2"):
        arguments = ["compare", str(data), "--out", str(tmp_path / jobs), "--mae-epochs", "0.5", "--fractions", "1"]
        command.main([*arguments, "--seeds", "3", "--jobs", jobs])
    one, two = (
        sorted(
            (line["settings"]["variant"]["name"], *map(line["curve"][-1].get, ("loss", "probe", "knn")))
            for line in lines
        )
        for lines in (read_lines(tmp_path / "1"), read_lines(tmp_path / "2"))
    )
    assert [name for name, *_ in one] == ["coma", "mae"]
    assert one == two


@pytest.mark.slow
def test_a_killed_command_leaves_no_run_behind(data, tmp_path):
    arguments = ["choose", str(data), "--out", str(tmp_path), "--jobs", "2", "--epochs", "1000"]
    command_line = [sys.executable, "-m", "benchmarks.epochs", *arguments, "--variant", "mae", "--variant", "mae-wide"]
    process = begin(command_line, tmp_path / "log")
    wait_until(lambda: len(descendants(process.pid)) == 3, 60, process)  # two that train, and multiprocessing's tracker
    workers = descendants(process.pid)
    time.sleep(5)
    assert all(map(alive, workers))
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, workers)), 120)


@pytest.mark.usefixtures("miniature")
def test_a_run_that_diverges_takes_no_other_with_it(data, tmp_path, capsys, monkeypatch):
    wild = dataclasses.replace(VARIANTS["coma"], name="wild", lr=float("inf"))
    monkeypatch.setitem(VARIANTS, "wild", wild)
    monkeypatch.setitem(CHOSEN, "wild", "wild")
    arguments = [
        "compare",
        str(data),
        "--out",
        str(tmp_path),
        "--mae-epochs",
        "0.5",
        "--fractions",
        "1",
        "--seeds",
        "0",
    ]
    with pytest.raises(SystemExit) as caught:
        command.main([*arguments, "--jobs", "1", "--variant", "wild", "--variant", "coma"])
    assert caught.value.code == 4
    assert [line["settings"]["variant"]["name"] for line in read_lines(tmp_path)] == ["mae", "coma"]
    assert "lower the learning rate" in capsys.readouterr().err.splitlines()[-1]


def test_images_are_the_streams(data):
    """Windows, flips, normalisation and evaluation are those of a stream over the same shards."""
    held = load_to_compare(data, 1000)
    with Stream(data, batch_size=8, image_size=32, unit_size=4, training=False, split="test") as stream:
        streamed = torch.cat([batch.images for batch in stream])
    mine = torch.cat([batch.images for batch in evaluation_batches(held.test, 32)])
    torch.testing.assert_close(mine, streamed, atol=0.02, rtol=0)
    with Stream(data, batch_size=8, image_size=32, unit_size=4, seed=5) as stream:
        batch = next(stream)
    ours = {}
    options = {"batch_size": 8, "image_size": 32, "seed": 5, "crop_scale": (0.2, 1.0)}
    for images, samples, _ in training_batches(held.train, steps=8, **options):
        ours |= dict(zip(samples.tolist(), images, strict=True))
    assert len(ours) == 64  # every image once an epoch
    for sample, image in zip(batch.samples.tolist(), batch.images, strict=True):
        torch.testing.assert_close(ours[sample], image, atol=0.02, rtol=0)


def test_a_torn_line_is_written_over(tmp_path):
    lines = [{"settings": Settings(VARIANTS["coma"], seed, 1, (1,), 64, 32, "", "").to_json()} for seed in (1, 2, 3)]
    append_line(tmp_path, lines[0])
    with (tmp_path / RUNS_NAME).open("a") as file:
        file.write(json.dumps(lines[1])[:-9])
    assert read_lines(tmp_path) == lines[:1]
    append_line(tmp_path, lines[2])
    assert read_lines(tmp_path) == [lines[0], lines[2]]


def test_a_line_from_before_a_lever_was_there_stands_for_its_default(tmp_path):
    run = Settings(VARIANTS["coma"], 1, 1, (1,), 64, 32, "", "")
    settings = run.to_json()
    del settings["variant"]["levers"]["contrast"]
    append_line(tmp_path, {"settings": settings, "curve": []})
    assert line_of(read_lines(tmp_path), run) is not None
    contrasted = dataclasses.replace(run, variant=variant("coma:levers.contrast=0.1"))
    assert line_of(read_lines(tmp_path), contrasted) is None


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ([(5, 50.0), (10, 54.0), (20, 58.0)], Crossing(10, 8.75)),
        ([(20, 58.0), (10, 54.0), (5, 50.0)], Crossing(10, 8.75)),
        ([(5, 53.0), (10, 54.0)], Crossing(5, 5.0)),
        ([(5, 55.0)], Crossing(5, None)),
        ([(5, 50.0), (10, 52.9)], Crossing(None, None)),
        ([(5, 52.0), (10, 54.0), (20, 50.0)], Crossing(10, 7.5)),
    ],
)
def test_where_a_target_is_reached(points, found):
    wanted = found if found.between != 5.0 else Crossing(5, None)  # the first run is there: at the latest
    assert crossing(points, 53.0) == wanted


def test_costs_at_equal_accuracy():
    reference = Row("mae", 40, probe=(55.0, 57.0), knn=(45.0, 45.0), cpu_s=(900.0, 1100.0), macs=4e12)
    short = Row("coma", 10, probe=(54.0, 54.0), knn=(45.0, 45.0), cpu_s=(400.0, 400.0), macs=1e12)
    long = Row("coma", 20, probe=(58.0, 58.0), knn=(45.0, 45.0), cpu_s=(800.0, 800.0), macs=2e12)
    (verdict,) = verdicts([reference, short, long], reference, ["coma"])
    assert verdict.crossing == Crossing(20, 15.0)
    assert (verdict.target, verdict.epochs) == (56.0, 0.375)
    assert verdict.by_seed == (0.3125, 0.4375)  # 55 and 57, each on the line from 54 to 58
    assert verdict.cpu_s == pytest.approx(0.6)
    assert verdict.macs == pytest.approx(0.375)
    words = conclusions([verdict])
    assert "in 20 (50% of them; on a line, 15.0 epochs: 38%)" in words
    assert "each seed against its own: 31%, 44%" in words
    (missed,) = verdicts([reference, short], reference, ["coma"])
    assert missed.epochs is missed.cpu_s is missed.macs is None
    assert missed.by_seed == (None, None)
    assert "coma does not reach mae's 56.0% of 40 epochs" in conclusions([missed])
    assert "each seed against its own: not reached, not reached" in conclusions([missed])


LEVERS = (
    "levers.target=low-pass",
    "levers.target=batch",
    "levers.target=gradients",
    "levers.consistency=1.0",
    "levers.contrast=0.1",
    "levers.local=0.5",
    "levers.fused=True",
    "levers.registers=2",
    "levers.registers=2,levers.pooled=registers",
    "levers.block=2",
    "backbone.unit_size=8",
    "views=2",
)
MAE_LEVERS = (
    "mae:visible=0.5",
    "mae:levers.target=low-pass",
    "mae:levers.target=gradients",
    "mae:levers.target=batch,levers.block=2",
)


@pytest.mark.usefixtures("miniature")
@pytest.mark.parametrize(
    "text",
    [*VARIANTS, *(f"coma:{lever}" for lever in LEVERS), *MAE_LEVERS, "coma:bfloat16=False", *CHOSEN.values()],
)
def test_every_variant_trains_and_can_be_probed(data, text):
    held = load_to_compare(data, 64)
    row = variant(text)
    batch, samples, epochs = next(
        training_batches(held.train, steps=1, batch_size=4, image_size=32, seed=0, crop_scale=row.crop_scale)
    )
    model = row.build(32)
    row.loss(model, batch, samples, epochs, seed=0).backward()
    assert all(p.grad is not None for p in model.parameters()), row.name
    assert model.units * model.tokens == 64
    assert model.patch_values == 48  # 4 px squares are hidden and predicted by both methods
    features = extract(model.backbone, list(evaluation_batches(held.test, 32)))
    assert features.x.shape == (20, model.encoder.stage_dims[-1])
    assert (features.x[0] - features.x[-1]).abs().max() > 0


@pytest.mark.usefixtures("miniature")
def test_views_stay_blind_to_each_other_with_every_lever():
    images, samples = torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)
    for lever in ("fused=True", "registers=2", "local=0.5"):
        model = variant(f"coma:levers.{lever}").build(32)
        units = permuted_units(Levers(), samples, samples, seed=0, units=64)
        patches, grid = model.patchify(images, units)
        patches.requires_grad_()
        visible, _ = model.split_units(units)
        first = len(visible[0][0])
        model.encode(patches, grid, visible)[-1][:, :first].square().sum().backward()
        seen = patches.grad.flatten(2).abs().sum(dim=2)[0]
        assert set(seen.nonzero().flatten().tolist()) == set(visible[0][0].tolist()), lever


def test_blocks_of_units_stay_in_one_view():
    samples = torch.arange(5)
    units = permuted_units(Levers(block=2), samples, samples, seed=0, units=64)
    assert torch.equal(units.sort(dim=1).values, torch.arange(64).expand(5, -1))
    for view in torch.split(units, 16, dim=1):
        blocks = (view // 16) * 4 + view % 8 // 2  # which square of 2 x 2 units
        assert all(len(set(row.tolist())) == 4 for row in blocks)


def test_histograms_of_gradients_tell_directions_apart():
    ramp = torch.arange(32.0)
    across, down = ramp.expand(32, 32), ramp[:, None].expand(32, 32)
    images = torch.stack([across, down, across - down], dim=0)[None]  # a direction in each channel
    histograms = _gradient_histograms(images, 4).reshape(8, 8, 3, ORIENTATIONS)[1:-1, 1:-1]
    wanted = F.one_hot(torch.tensor([0, 4, 6]), ORIENTATIONS) * 3.0  # 0, 90 and 135 degrees, in steps of 20
    torch.testing.assert_close(histograms, wanted.expand_as(histograms))
    left = torch.zeros(1, 3, 32, 32)
    left[..., 5, 9] = 1.0  # a dot in the unit of row 1, column 2
    filled = _gradient_histograms(left, 4).flatten(1).reshape(64, -1).any(dim=1).nonzero().flatten()
    assert set(filled.tolist()) <= {8 * row + column for row in (0, 1) for column in (1, 2)}
    assert 8 * 1 + 2 in filled.tolist()


def test_contrast_is_least_where_the_views_of_an_image_agree():
    a, b = torch.eye(64)[:2]
    together = _contrast(torch.stack([torch.stack([a, a, a]), torch.stack([b, b, b])]))
    apart = _contrast(torch.stack([torch.stack([a, a, b]), torch.stack([b, b, a])]))
    # Each view has two others of its image at similarity 1 / 0.2 and three of the other image at 0.
    assert float(together) == pytest.approx(-math.log(math.exp(5) / (2 * math.exp(5) + 3)))
    assert together < apart


def test_a_low_pass_keeps_what_is_smooth():
    across = torch.arange(32) / 32 * 2 * torch.pi
    smooth, fine = torch.cos(3 * across), torch.cos(14 * across)
    image = (smooth + fine + 0.5).expand(1, 3, 32, 32)
    torch.testing.assert_close(_low_pass(image), (smooth + 0.5).expand(1, 3, 32, 32), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("miniature")
def test_the_test_images_are_out_of_reach_of_choosing(data, tmp_path, capsys):
    """`choose` gives the same without a test split; `compare` takes nothing that was not chosen before."""
    alone = tmp_path / "alone"
    shutil.copytree(data, alone, ignore=shutil.ignore_patterns("test"))
    results = []
    for folder, out in ((data, tmp_path / "with"), (alone, tmp_path / "without")):
        options = ["--epochs", "0.5", "--variant", "coma", "--variant", "coma:lr=2e-3", "--jobs", "1"]
        command.main(["choose", str(folder), "--out", str(out), *options])
        results.append([(line["settings"], line["curve"][0]["probe"]) for line in read_lines(out)])
    assert results[0] == results[1]
    assert {settings["tested_on"] for settings, _ in results[0]} == {HELD_OUT}
    held = load_to_choose(data, 1000)
    assert (len(held.train), len(held.test)) == (52, 12)
    pixels = {image.numpy().tobytes() for image in held.train.pixels}
    assert not any(image.numpy().tobytes() in pixels for image in held.test.pixels)
    assert "coma:lr=2e-3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        command.main(["compare", str(data), "--out", str(tmp_path), "--variant", "coma:lr=2e-3"])
    assert caught.value.code == 2
    assert "was not chosen" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        command.main(["compare", str(alone), "--out", str(tmp_path)])
    assert caught.value.code == 3


def test_networks_are_of_the_size_that_is_said():
    millions = {
        name: sum(p.numel() for p in VARIANTS[name].build(32).backbone.parameters()) / 1e6
        for name in ("mae", "mae-wide", "mae-deep", "coma", "coma-wide", "coma-512")
    }
    said = {"mae": 1.2, "mae-wide": 1.35, "mae-deep": 3.17, "coma": 0.97, "coma-wide": 1.27, "coma-512": 2.86}
    assert millions == pytest.approx(said, abs=0.01)


def test_what_is_compared_has_as_many_parameters_or_as_much_compute():
    rows = {name: chosen(name) for name in ("mae", "mae-compute", "coma")}
    parameters = {name: sum(p.numel() for p in row.build(32).backbone.parameters()) for name, row in rows.items()}
    assert parameters["mae"] >= parameters["coma"]
    assert macs_per_image(rows["mae-compute"], 32) == pytest.approx(macs_per_image(rows["coma"], 32), rel=0.05)


def test_several_masks_cost_several_passes():
    one, four = (macs_per_image(VARIANTS[n], 32) for n in ("mae-wide", "mae-4masks"))
    assert four == 4 * one


def test_a_variant_by_its_name_and_changes():
    assert variant("coma") == VARIANTS["coma"]
    tuned = variant("coma:lr=3e-3,crop_scale=(0.4,1.0),levers.fused=True,backbone.dims=(8,16,32)")
    assert (tuned.lr, tuned.crop_scale, tuned.levers.fused) == (3e-3, (0.4, 1.0), True)
    nested = variant("coma:backbone.heads=(((4,1),(16,1)),((4,2),),((None,8),)),lr=3e-3")
    assert (nested.backbone["heads"][0], nested.lr) == (((4, 1), (16, 1)), 3e-3)
    assert (tuned.backbone["dims"], tuned.backbone["depths"]) == ((8, 16, 32), VARIANTS["coma"].backbone["depths"])
    for text, words in (
        ("comb", "choose mae, "),
        ("coma:speed=1", "no 'speed' to change"),
        ("coma:levers.speed=1", "levers has target, "),
        ("coma:backbone.width=1", "backbone has patch_size, "),
        ("coma:lr=fast", "another kind"),
        ("coma:lr=-1.0", "not between 0 and 1"),
        ("coma:batch_size=0.5", "another kind"),
    ):
        with pytest.raises(UsageError, match=words):
            variant(text)
    with pytest.raises(UsageError, match="was not chosen"):
        chosen("coma-of-nobody")


@pytest.mark.usefixtures("miniature")
def test_mistakes_are_one_line(data, tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder, out, code in ((tmp_path / "nothing", tmp_path, 3), (data, tmp_path / "file", 2)):
        for work in (["choose", "--variant", "coma"], ["compare"]):
            with pytest.raises(SystemExit) as caught:
                command.main([*work, str(folder), "--out", str(out)])
            assert caught.value.code == code
            assert len(capsys.readouterr().err.splitlines()) == 1


def test_it_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["epochs", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(command.__file__, run_name="__main__")
    assert caught.value.code == 0
    assert "choose" in capsys.readouterr().out
