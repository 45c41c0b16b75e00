"""Flips and quarter turns of training crops: their distribution, their keys, and the pixels that come of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from devices import DEVICE
from drawn import sharded

from coma.errors import UsageError
from coma.pipeline import Stream
from coma.pipeline.crops import Crops, Flips, random_resized_crops

COUNT = 8000
ON = {"image_size": 32, "unit_size": 16, "batch_size": 32, "device": DEVICE, "seed": 3}


def draw(flips: Flips = "horizontal", quarter_turns: bool = False) -> Crops:
    sizes = np.full(COUNT, 300, np.int32), np.full(COUNT, 200, np.int32)
    kinds = {"flips": flips, "quarter_turns": quarter_turns}
    return random_resized_crops(np.arange(COUNT), np.zeros(COUNT, np.int64), *sizes, seed=1, **kinds)


def shares(crops: Crops) -> dict[tuple[int, int], float]:
    quarters = np.zeros(COUNT, np.int32) if crops.quarters is None else crops.quarters
    pairs, counts = np.unique(np.stack([crops.flip, quarters]), axis=1, return_counts=True)
    return {(int(flip), int(turns)): count / COUNT for (flip, turns), count in zip(pairs.T, counts, strict=True)}


@pytest.mark.parametrize(
    ("flips", "quarter_turns", "ways"),
    [
        ("horizontal", False, [(0, 0), (1, 0)]),
        ("none", False, [(0, 0)]),
        ("both", False, [(0, 0), (0, 2), (1, 0), (1, 2)]),  # top and bottom mirrored: (1, 2)
        ("none", True, [(0, 0), (0, 1), (0, 2), (0, 3)]),
        ("horizontal", True, [(flip, turns) for flip in (0, 1) for turns in range(4)]),
        ("both", True, [(flip, turns) for flip in (0, 1) for turns in range(4)]),
    ],
)
def test_each_way_of_lying_is_as_likely_as_another(
    flips: Flips, quarter_turns: bool, ways: list[tuple[int, int]]
) -> None:
    drawn = shares(draw(flips, quarter_turns))
    assert sorted(drawn) == ways
    deviation = (len(ways) * COUNT) ** -0.5
    assert all(abs(share - 1 / len(ways)) < 5 * deviation for share in drawn.values())


def test_windows_do_not_depend_on_flips_and_turns() -> None:
    plain, turned = draw(), draw("both", quarter_turns=True)
    assert (plain.start == turned.start).all()
    assert (plain.shape == turned.shape).all()
    assert plain.quarters is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("turns"), 40, smooth=True)


@pytest.mark.parametrize(("flips", "quarter_turns"), [("both", False), ("none", True), ("both", True)])
def test_the_stream_shows_the_same_windows_flipped_and_turned(data: Path, flips: Flips, quarter_turns: bool) -> None:
    with (
        Stream(data, flips="none", **ON) as plain,
        Stream(data, flips=flips, quarter_turns=quarter_turns, **ON) as ours,
    ):
        crops = None
        for _ in range(3):  # into the second epoch
            upright, batch = next(plain), next(ours)
            assert torch.equal(upright.samples, batch.samples)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            ids, manifest = batch.samples.cpu().numpy(), ours.manifest
            epochs = ours.plan(ours.consumed // 32).epochs
            sizes = manifest.width[ids], manifest.height[ids]
            crops = random_resized_crops(ids, epochs, *sizes, seed=3, flips=flips, quarter_turns=quarter_turns)
            assert crops.quarters is not None
            for place, image in enumerate(batch.images.cpu().numpy()):
                wanted = upright.images[place].cpu().numpy()
                wanted = wanted[:, :, ::-1] if crops.flip[place] else wanted
                assert (image == np.rot90(wanted, crops.quarters[place], (1, 2))).all()


def test_two_ranks_turn_the_same_images(data: Path) -> None:
    options = {**ON, "flips": "both", "quarter_turns": True}
    with Stream(data, **options) as alone:
        together = next(alone).images
    parts = []
    for rank in range(2):
        with Stream(data, rank=rank, world_size=2, **options) as stream:
            parts.append(next(stream).images)
    assert torch.equal(together, torch.cat(parts))


def test_another_word_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="flips is 'vertical'; it must be horizontal, none or both"):
        Stream(data, flips="vertical", **ON)  # type: ignore[arg-type]
