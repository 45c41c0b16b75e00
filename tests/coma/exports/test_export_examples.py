"""examples/detection.py and examples/segmentation.py learn on what `coma export` wrote, beside random weights."""

import runpy
from pathlib import Path

import pytest
import torch
from untrained_runs import write_run

from coma.exports.export import export_run

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["detection", "segmentation"])
def test_it_trains_from_the_exports_weights_and_from_random_ones(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_run(write_run(tmp_path / "run", patch_size=None), tmp_path / "out")
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    few = ["--pictures", "10", "--steps", "3", "--batch-size", "2", "--image-size", "64", "--width", "32"]
    scores = example["main"]([str(tmp_path / "out"), str(tmp_path / "out"), *few])
    assert [set(each) for each in scores] == [{"random", "pretrained", "random_loss", "pretrained_loss"}] * 2
    assert all(0 <= each[key] <= 100 for each in scores for key in ("random", "pretrained"))
    assert scores[0] != scores[1]  # by another seed
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[-1].startswith("| 1 | ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_segmentation_learns(tmp_path: Path) -> None:
    export_run(write_run(tmp_path / "run", patch_size=None), tmp_path / "out")
    example = runpy.run_path(str(EXAMPLES / "segmentation.py"))
    torch.manual_seed(0)
    model = example["Segmenter"](tmp_path / "out", 12, 32)
    images, labels = example["draw"](4, 64, 0)
    history = example["train"](model, images, labels, 30, 2, 1e-3)
    assert sum(history[-3:]) < 0.8 * sum(history[:3])


def test_a_size_that_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_run(write_run(tmp_path / "run", patch_size=None), tmp_path / "out")
    main = runpy.run_path(str(EXAMPLES / "segmentation.py"))["main"]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--image-size", "100"])
    assert "--image-size 100 is not a multiple of 32" in capsys.readouterr().err.splitlines()[-1]
