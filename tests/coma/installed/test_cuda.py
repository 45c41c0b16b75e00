"""torch, DALI and the driver are judged by their CUDAs: all cases as a table, and what is installed here."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch

import coma.installed.cuda
from coma.errors import UsageError
from coma.evaluation.device import choose_device
from coma.installed.cuda import CudaVersions, check_cuda, cuda_packages, cuda_versions, judge
from coma.installed.installation import Installation

DALI_12, DALI_13 = "nvidia-dali-cuda120", "nvidia-dali-cuda130"
TO_12 = "pip install 'torch<2.11' torchvision nvidia-dali-cuda120"
TO_13 = "pip install 'torch>=2.11' torchvision nvidia-dali-cuda130"
DECODER_12, DECODER_13 = "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13"


@pytest.fixture(autouse=True)
def installed_by_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coma.installed.cuda, "installation", Installation)


@pytest.mark.parametrize(
    ("torch_cuda", "dali", "driver", "status", "advice"),
    [
        ((12, 8), (12, 9), (12, 2), "ok", ""),  # a minor version may be newer than the driver's
        ((12, 8), (12, 9), (13, 0), "ok", ""),
        ((13, 2), (13, 4), (13, 0), "ok", ""),
        ((13, 2), (13, 4), None, "ok", ""),  # on the CPU
        ((12, 8), (13, 4), None, "warning", TO_12),
        (None, (12, 9), None, "ok", ""),
        (None, (12, 9), (13, 0), "ok", ""),
        ((12, 8), (), (13, 0), "ok", ""),  # DALI does not say
        (
            (13, 2),
            (13, 4),
            (12, 8),
            "problem",
            f"{TO_12}, or update the driver, to 580 or newer",
        ),
        (
            (13, 2),
            (12, 9),
            (12, 8),
            "problem",
            f"{TO_12}, or update the driver, to 580 or newer",
        ),
        (
            (12, 8),
            (13, 4),
            (12, 8),
            "problem",
            f"{TO_12}, or update the driver, to 580 or newer",
        ),
        ((12, 8), (12, 9), (11, 4), "problem", "update the driver, to 525 or newer"),
        ((12, 8), (13, 4), (13, 0), "warning", TO_12),
        ((13, 2), (12, 9), (13, 0), "warning", TO_13),
        ((13, 2), (12, 9), (14, 1), "warning", TO_13),
        ((12, 8), None, (13, 0), "problem", f"DALI is missing: pip install {DALI_12}"),
        ((13, 0), None, None, "problem", f"DALI is missing: pip install {DALI_13}"),
        (None, None, None, "problem", f"DALI is missing: pip install {DALI_13}"),
    ],
)
def test_majors_are_compared(torch_cuda, dali, driver, status: str, advice: str) -> None:
    judgement = judge(CudaVersions(torch_cuda, dali, driver))
    assert (judgement.status, judgement.advice) == (status, advice)


def test_a_judgement_names_all_three() -> None:
    text = judge(CudaVersions((13, 2), (12, 9), (12, 8))).text
    assert text == "torch for CUDA 13.2, DALI for CUDA 12.9, a driver for CUDA 12.8, which is too old"
    assert judge(CudaVersions(None, None, None)).text == "torch for the CPU, no DALI, no driver"


@pytest.mark.parametrize("packages", [(DALI_12, DALI_13), (DALI_12, DECODER_12, DECODER_13)])
def test_two_distributions_of_one_module_never_meet(packages: tuple[str, ...]) -> None:
    judgement = judge(CudaVersions((12, 8), (12, 9), (13, 0), packages))
    assert judgement.status == "problem"
    assert "overwrites files of the other" in judgement.text
    assert judgement.advice == f"pip uninstall -y {' '.join(packages)} && {TO_12}"
    assert judge(CudaVersions((12, 8), (12, 9), (13, 0), (DALI_12, DECODER_12))).status == "ok"


def test_what_an_extra_does_not_replace_goes_first() -> None:
    judgement = judge(CudaVersions((12, 8), (13, 4), (13, 0), (DALI_13, DECODER_13)))
    assert judgement.advice == f"pip uninstall -y {DALI_13} {DECODER_13} && {TO_12}"


def test_what_is_installed_here_is_found() -> None:
    here = cuda_versions()
    assert here.torch == (tuple(map(int, torch.version.cuda.split("."))) if torch.version.cuda else None)
    assert here.dali is not None
    (dali,) = (name for name in here.packages if name.startswith("nvidia-dali-"))
    assert f"nvidia-dali-cuda{here.dali[0]}0" == dali
    assert judge(here).status == "ok"


def test_a_distribution_is_found_by_its_metadata_alone(tmp_path, monkeypatch) -> None:
    (tmp_path / "nvidia_dali_cuda140-3.0.0.dist-info").mkdir()
    (tmp_path / "nvidia_dali_cuda140-3.0.0.dist-info" / "METADATA").write_text("Name: nvidia-dali-cuda140\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "nvidia-dali-cuda140" in cuda_packages()


@pytest.fixture
def gpu_of(monkeypatch):
    """Return a function that lets this machine have a GPU, with these versions, that torch may be able to use."""

    def become(versions: CudaVersions, usable: bool) -> None:
        monkeypatch.setattr(coma.installed.cuda, "cuda_versions", lambda: versions)
        monkeypatch.setattr(coma.installed.cuda, "_gpus_of_driver", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)

    return become


def test_a_run_on_a_gpu_begins_only_where_they_match(gpu_of, caplog) -> None:
    gpu_of(CudaVersions((12, 8), (12, 9), (13, 0)), usable=True)
    check_cuda()
    assert not caplog.records
    gpu_of(CudaVersions((12, 8), (13, 4), (13, 0)), usable=True)
    with caplog.at_level(logging.WARNING, logger="coma"):
        check_cuda(quiet=True)
        assert not caplog.records
        check_cuda()
    assert "DALI for CUDA 13.4" in caplog.text
    gpu_of(CudaVersions((12, 8), (13, 4), (12, 8)), usable=True)
    for begin in (check_cuda, choose_device, lambda: choose_device("cuda:0")):
        with pytest.raises(UsageError, match=r"torch for CUDA 12\.8, DALI for CUDA 13\.4, a driver for CUDA 12\.8"):
            begin()
    assert choose_device("cpu") == "cpu"


def test_what_needs_no_dali_may_use_a_gpu_without(gpu_of) -> None:
    gpu_of(CudaVersions((12, 8), None, (13, 0)), usable=True)
    assert choose_device() == "cuda"


def test_a_gpu_whose_driver_is_too_old_for_torch_is_not_passed_over(gpu_of) -> None:
    gpu_of(CudaVersions((13, 2), (13, 4), (12, 8)), usable=False)
    with pytest.raises(UsageError, match=re.escape("or CUDA_VISIBLE_DEVICES= in front of the command")):
        check_cuda()


def test_without_a_gpu_nothing_is_judged(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(coma.installed.cuda, "_gpus_of_driver", lambda: 0)
    monkeypatch.setattr(coma.installed.cuda, "cuda_versions", lambda: CudaVersions(None, None, None))
    check_cuda()


@pytest.mark.parametrize(("number", "expected"), [(12080, (12, 8)), (13000, (13, 0)), (11040, (11, 4)), (0, None)])
def test_the_driver_says_its_cuda_as_a_number(number: int, expected, monkeypatch) -> None:
    def version(pointer) -> int:
        pointer._obj.value = number
        return 0

    monkeypatch.setattr(coma.installed.cuda, "_libcuda", lambda: SimpleNamespace(cuDriverGetVersion=version))
    assert cuda_versions().driver == expected
