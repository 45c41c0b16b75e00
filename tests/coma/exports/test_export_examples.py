"""examples/detection.py and examples/segmentation.py learn on what `coma export` wrote."""

import runpy
from pathlib import Path

import pytest
from untrained_runs import write_run

from coma.exports.export import export_run

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["detection", "segmentation"])
def test_the_loss_falls(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_run(write_run(tmp_path / "run", patch_size=None), tmp_path / "out")
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    sizes = ["--steps", "12", "--batch-size", "2", "--image-size", "96", "--lr", "3e-4"]
    history = main([str(tmp_path / "out"), *sizes])
    assert len(history) == 12
    assert sum(history[-3:]) < 0.7 * sum(history[:3])
    assert "step 12  " in capsys.readouterr().out


def test_a_size_that_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_run(write_run(tmp_path / "run", patch_size=None), tmp_path / "out")
    main = runpy.run_path(str(EXAMPLES / "segmentation.py"))["main"]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--image-size", "100"])
    assert "--image-size 100 is not a multiple of 32" in capsys.readouterr().err.splitlines()[-1]
