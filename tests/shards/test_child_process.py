"""Processes that are started run coma and nothing that lies in the current folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import draw_images

NAMES = ("json", "pickle", "numpy", "PIL", "pyarrow", "xxhash", "multiprocessing")


@pytest.mark.parametrize(
    "start",
    [
        ["-c", "from coma.cli.main import main; main()"],
        pytest.param(["-P", "-m", "coma"], marks=pytest.mark.slow),
    ],
)
def test_a_module_in_the_current_folder_is_not_run(tmp_path: Path, start: list[str]) -> None:
    draw_images(tmp_path / "pets", 4, classes=("cat", "dog"))
    environment = {**os.environ, "PYTHONSAFEPATH": "1"} if start[0] == "-c" else dict(os.environ)
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("open('RUN', 'w').close()\nraise SystemExit('a file of the data ran')\n")
    done = subprocess.run(
        [sys.executable, *start, "shard", "pets", "out", "--workers", "2"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "RUN").exists()
    assert (tmp_path / "out" / "train" / "manifest.parquet").is_file()
