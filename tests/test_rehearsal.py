"""The GPU's tests on the CPU, so that they are right when a GPU is at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import REHEARSED, of_the_gpu

ROOT = Path(__file__).parent.parent


def pytest_of(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    options = ["-m", "gpu", "-n0", "-q", "--no-header", "-p", "no:cacheprovider"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *words],
        cwd=ROOT,
        env={**kept, "CUDA_VISIBLE_DEVICES": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_without_a_gpu_its_tests_are_refused_and_not_green() -> None:
    done = pytest_of("tests/pipeline/test_views.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "finds no GPU here that it can use; COMA_REHEARSE_GPU=1" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_test_of_both_devices_is_the_gpus_when_those_are_asked_for() -> None:
    done = pytest_of("tests/pipeline/test_views.py", "tests/coma/evaluation/test_neighbours.py", COMA_REHEARSE_GPU="1")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    ("markers", "gpu"),
    [("gpu", True), ("slow or gpu", True), ("not slow and not gpu", False), ("", False), ("gpu and not slow", True)],
)
def test_what_asks_for_the_gpus_tests(markers: str, gpu: bool) -> None:
    assert of_the_gpu(markers) == gpu


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(REHEARSED, reason="this is the rehearsal")
def test_the_rehearsal_passes() -> None:
    done = pytest_of("tests", COMA_REHEARSE_GPU="1")
    assert done.returncode == 0, done.stdout[-5000:]
    assert " failed" not in done.stdout
