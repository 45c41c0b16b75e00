"""timm's own tests of its models, fetched with timm's source release, applied to DyViT.

Left out are TorchScript and symbolic tracing by torch.fx, as timm leaves them out for Hiera, the model most like this
one: what its windows are follows from the image's size. `torch.export` takes it whole (test_onnx.py).
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

ONLY_DYVIT = """
import coma
import timm

every_model = timm.list_models
def of_ours(filter="", module="", **options):  # whatever module timm's tests name: it can't be ours
    return [name for name in every_model(filter, **options) if name.startswith("dyvit_")]
timm.list_models = of_ours
"""
WANTED = "dyvit and (nano or tiny or default_cfgs) and not fx and not torchscript"


def source_release(folder: Path) -> Path:
    """timm's sources of the version that is installed; skips where they can't be had."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv, which fetches timm's source release, is not here")
    pip = [uv, "tool", "run", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm"]
    release = f"timm=={timm.__version__}"
    done = subprocess.run([*pip, release, "--dest", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the source release of {release} can't be had: {done.stderr.strip().splitlines()[-1:]}")
    (archive,) = folder.glob("timm-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.mark.slow
def test_timms_tests_pass_for_dyvit(tmp_path: Path) -> None:
    sources = source_release(tmp_path / "release")
    if not (sources / "tests" / "test_models.py").is_file():
        pytest.skip(f"the source release of timm {timm.__version__} has no tests/test_models.py")
    shutil.copytree(sources / "tests", tmp_path / "tests")  # away from the sources: the timm here is tested
    (tmp_path / "only_dyvit.py").write_text(ONLY_DYVIT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "only_dyvit", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", os.devnull, "tests/test_models.py", "-k", WANTED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 17  # six tests of two sizes, one of all five
