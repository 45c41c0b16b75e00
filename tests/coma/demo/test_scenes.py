"""The demo's drawn pictures: the same for one seed, told apart by structure and not by colour."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coma.demo.scene_files import write_scenes
from coma.demo.scenes import CLASS_NAMES, PLAIN, SEGMENT_NAMES, SIDE_PX, draw_scene, draw_segmented_scene
from coma.errors import UsageError


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def test_the_same_seed_draws_the_same_files_in_one_process_or_two(tmp_path):
    write_scenes(tmp_path / "a", train=120, val=20, seed=3, workers=1)
    write_scenes(tmp_path / "b", train=120, val=20, seed=3, workers=2)
    first = _bytes(tmp_path / "a")
    assert first == _bytes(tmp_path / "b")
    assert len(first) == 140
    assert len(set(first.values())) == 140  # train and val share no picture
    for split, count in (("train", 12), ("val", 2)):
        assert [len(list((tmp_path / "a" / split / name).iterdir())) for name in CLASS_NAMES] == [count] * 10


def test_another_seed_draws_other_pictures():
    first, second = (np.asarray(draw_scene(0, np.random.default_rng(seed))) for seed in (0, 1))
    assert first.shape != second.shape or (first != second).any()


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_sizes_vary_and_stay_in_range(label):
    sizes = {draw_scene(label, np.random.default_rng([label, i])).size for i in range(6)}
    assert len(sizes) > 3
    assert all(SIDE_PX[0] <= side <= SIDE_PX[1] for size in sizes for side in size)


def test_colour_and_size_do_not_tell_the_classes_apart():
    from sklearn.linear_model import LogisticRegression

    rows, labels = [], []
    for number in range(500):
        picture = draw_scene(number % 10, np.random.default_rng([11, number]))
        tiny = np.asarray(picture.resize((4, 4), Image.Resampling.BOX), dtype=np.float64) / 255
        rows.append([*tiny.mean((0, 1)), *tiny.std((0, 1)), *tiny.ravel(), *picture.size])
        labels.append(number % 10)
    x, y = np.array(rows), np.array(labels)
    x = (x - x.mean(0)) / x.std(0)
    accuracy = LogisticRegression(C=0.1, max_iter=500).fit(x[:350], y[:350]).score(x[350:], y[350:])
    assert accuracy < 0.25  # chance is 0.1


def test_mistakes_are_told_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="leave a class empty"):
        write_scenes(tmp_path, train=9, val=10)
    assert not any(tmp_path.iterdir())
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_scenes(tmp_path, train=10, val=10)
    assert not (tmp_path / "train").exists()


def test_masks_lie_beside_the_same_pictures(tmp_path):
    write_scenes(tmp_path / "plain", train=20, val=10, seed=3, workers=1)
    write_scenes(tmp_path / "masked", train=20, val=10, seed=3, workers=1, masks=True)
    same_pictures = sorted(_bytes(tmp_path / "plain").values())
    assert sorted(_bytes(tmp_path / "masked" / "images").values()) == same_pictures
    assert (tmp_path / "masked" / "classes.txt").read_text().split() == list(SEGMENT_NAMES)
    for number, name in enumerate(CLASS_NAMES, start=1):
        mask = Image.open(tmp_path / "masked" / "masks" / "val" / f"{number:05}.png")
        assert mask.size == Image.open(tmp_path / "masked" / "images" / "val" / f"{number:05}.jpg").size
        present = {SEGMENT_NAMES[value] for value in np.unique(mask)}
        assert name in present <= {"background", PLAIN, name}


def test_a_mask_follows_the_object():
    """Inside it, next to its rim, the picture's edges differ from those outside: the pattern begins there."""
    picture, mask = draw_segmented_scene(CLASS_NAMES.index("fine-columns"), np.random.default_rng(5))
    grey, inside = np.asarray(picture.convert("L"), dtype=np.float64), np.asarray(mask) >= 2
    across = np.abs(np.diff(grey, axis=1))
    assert 0.2 < inside.mean() < 0.95
    assert across[inside[:, :-1]].mean() > 2 * across[~inside[:, :-1]].mean()
