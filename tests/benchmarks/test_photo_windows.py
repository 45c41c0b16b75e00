"""The second data set of the epochs benchmark: windows of photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.epochs import windows


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three photographs in which a pixel tells its column and a text."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        columns = np.linspace(0, 255, 320).astype(np.uint8)
        pixels = np.stack([np.broadcast_to(columns, (160, 320))] * 3, axis=-1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_no_pixel_is_in_both_splits(photographs, tmp_path):
    arguments = [str(photographs), str(tmp_path / "cut"), "--classes", "3", "--train", "40", "--test", "10"]
    windows.main(arguments)
    columns = {}
    for split, count in (("train", 120), ("test", 30)):
        files = sorted((tmp_path / "cut" / split).rglob("*.png"))
        assert len(files) == count
        assert len({file.parent.name for file in files}) == 3
        arrays = [np.asarray(Image.open(file)) for file in files]
        assert all(array.shape == (32, 32, 3) for array in arrays)
        columns[split] = (min(a.min() for a in arrays), max(a.max() for a in arrays))
    assert columns["train"][1] <= columns["test"][0]
    windows.main([str(photographs), str(tmp_path / "again"), *arguments[2:]])
    assert all(
        file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "cut")).read_bytes()
        for file in (tmp_path / "cut").rglob("*.png")
    )


def test_mistakes_are_one_line(photographs, tmp_path, capsys):
    for out, classes, words in ((tmp_path, "3", "there already"), (tmp_path / "new", "4", "holds 3 photographs")):
        with pytest.raises(SystemExit) as caught:
            windows.main([str(photographs), str(out), "--classes", classes])
        assert caught.value.code == 3
        assert words in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
