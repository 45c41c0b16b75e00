"""Whether torch, DALI and the driver are made for CUDAs that go together.

A driver runs what is built for the major version of its CUDA, or for an older one
(https://docs.nvidia.com/deploy/cuda-compatibility/). DALI comes as a distribution for each CUDA; all of them are one
module, `nvidia.dali`, so that two at a time overwrite each other.
"""

import ctypes
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from coma.errors import UsageError
from coma.installed.installation import installation

_DALI = {12: "nvidia-dali-cuda120", 13: "nvidia-dali-cuda130"}
PARTS = {
    12: ("torch<2.11", "torchvision", _DALI[12]),
    13: ("torch>=2.11", "torchvision", _DALI[13]),
}
"""What the extras cuda12 and cuda13 bring, by the major version of CUDA."""
_LEAST_DRIVER = {12: 525, 13: 580}
_OF_ITS_CUDA = re.compile(r"nvidia-(dali-cuda|nvimgcodec-cu)(\d\d)\d*")
"""DALI's distributions, and those of its decoder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CudaVersions:
    """CUDA versions, (12, 8), of what must match; None where there is none, or it is not known."""

    torch: tuple[int, ...] | None
    """That torch is built for; None: for the CPU alone."""
    dali: tuple[int, ...] | None
    """That DALI is built for; () if DALI is there and does not say; None: no DALI."""
    driver: tuple[int, ...] | None
    """The newest that the driver runs; None: no driver."""
    packages: tuple[str, ...] = ()
    """The installed distributions of DALI and of its decoder."""

    def describe(self) -> str:
        """Return them as text: torch for CUDA 12.8, DALI for CUDA 12.9, a driver for CUDA 13.0."""
        torch, dali, driver = (".".join(map(str, v or ())) for v in (self.torch, self.dali, self.driver))
        parts = [f"torch for {f'CUDA {torch}' if torch else 'the CPU'}"]
        parts.append("no DALI" if self.dali is None else f"DALI for CUDA {dali or 'unknown'}")
        parts.append(f"a driver for CUDA {driver}" if driver else "no driver")
        return ", ".join(parts)


@dataclass(frozen=True)
class Judgement:
    """Whether they match; `advice` is empty if they do."""

    status: Literal["ok", "warning", "problem"]
    text: str
    advice: str = ""


def judge(versions: CudaVersions) -> Judgement:
    """Compare torch's, DALI's and the driver's CUDA, by their major versions."""
    torch, dali, driver = (each[0] if each else None for each in (versions.torch, versions.dali, versions.driver))
    text = versions.describe()
    fitting = _install(_fitting(versions), versions.packages)
    if doubled := _doubled(versions.packages):
        return Judgement(
            "problem", f"{' and '.join(doubled)} are one module, each overwrites files of the other", fitting
        )
    if versions.dali is None:
        return Judgement("problem", text, without_dali(versions))
    built = [major for major in (torch, dali) if major is not None]
    if driver is not None and any(driver < major for major in built):
        least = max(built)
        needed = f", to {_LEAST_DRIVER[least]} or newer" if least in _LEAST_DRIVER else ""
        either = f"{fitting}, or " if driver in PARTS else ""
        return Judgement("problem", f"{text}, which is too old", f"{either}update the driver{needed}")
    if torch is not None and dali is not None and torch != dali:
        return Judgement("warning", f"{text}: of two CUDAs", fitting)
    return Judgement("ok", text)


def _install(major: int, packages: tuple[str, ...]) -> str:
    """Return the command that installs the parts of an extra; what they do not replace goes first."""
    wrong = [name for name in packages if _cuda_of(name) != major or _doubled(packages)]
    return installation().replace(wrong, *PARTS[major])


def check_dali() -> None:
    """Raise UsageError if DALI is not installed; it is not imported."""
    if _of_dali(()) is None:
        raise UsageError(without_dali())


def without_dali(versions: CudaVersions | None = None) -> str:
    """Return what to say where DALI is missing; `versions`: what else is there, by default here."""
    major = _fitting(versions or cuda_versions())
    return f"DALI is missing: {installation().group(f'cuda{major}', _DALI[major])}"


def _fitting(versions: CudaVersions) -> int:
    """Return the major version to install: torch's, unless the driver is older."""
    known = [version[0] for version in (versions.driver, versions.torch) if version]
    return max(min(PARTS), min([*known, max(PARTS)]))


def _cuda_of(package: str) -> int:
    """Return the major version in the name of a distribution."""
    match = _OF_ITS_CUDA.fullmatch(package)
    return int(match[2]) if match else 0


def _doubled(packages: tuple[str, ...]) -> list[str]:
    """Return distributions that are one module, if there are any: the first kind of which there are two."""
    for kind in ("nvidia-dali-", "nvidia-nvimgcodec-"):
        of_kind = [name for name in packages if name.startswith(kind)]
        if len(of_kind) > 1:
            return of_kind
    return []


def cuda_versions() -> CudaVersions:
    """Return the versions here. torch is imported, DALI is not: a broken one would take the process along."""
    import torch

    packages = cuda_packages()
    built = torch.version.cuda
    return CudaVersions(_numbers(built) if built else None, _of_dali(packages), _of_driver(), packages)


def check_cuda(quiet: bool = False) -> None:
    """Judge the versions before a run on a GPU; on a machine without one do nothing.

    A warning is logged, unless `quiet`: on all ranks but one.

    Raises:
        UsageError: they cannot work together. Also where torch sees no GPU since the driver is too old: the run would
            be on the CPU without a word.
    """
    import torch

    usable = torch.cuda.is_available()
    if not usable and (torch.version.cuda is None or not _gpus_of_driver()):
        return
    versions = cuda_versions()
    if usable and versions.dali is None:  # what needs DALI says so itself
        return
    judgement = judge(versions)
    if judgement.status == "problem":
        on_cpu = "" if usable else ", or CUDA_VISIBLE_DEVICES= in front of the command to use the CPU"
        raise UsageError(f"{judgement.text}: {judgement.advice}{on_cpu}")
    if judgement.status == "warning" and not quiet:
        logger.warning("%s; %s", judgement.text, judgement.advice)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def cuda_packages() -> tuple[str, ...]:
    """Return the installed distributions of DALI and of its decoder, whichever their CUDA, in order."""
    names = (name for major in range(11, 20) for name in (f"nvidia-dali-cuda{major}0", f"nvidia-nvimgcodec-cu{major}"))
    return tuple(sorted(name for name in names if any(distributions(name=name))))


def _of_dali(packages: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the CUDA of DALI by its source, which says int('12.9.86'.replace('.', '')), else by its distribution."""
    found = None
    with suppress(ImportError, ValueError):
        found = find_spec("nvidia.dali")
    if found is None or found.origin is None:
        return None
    with suppress(OSError):
        if built := re.search(r"__cuda_version__ = int\('([\d.]+)'", Path(found.origin).read_text(encoding="utf-8")):
            return _numbers(built[1])
    return next(((_cuda_of(name),) for name in packages if name.startswith("nvidia-dali-")), ())


def _libcuda() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _of_driver() -> tuple[int, ...] | None:
    driver, number = _libcuda(), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != 0 or number.value == 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _gpus_of_driver() -> int:
    """Return the number of GPUs that the driver sees, whatever torch can do with them."""
    driver, number = _libcuda(), ctypes.c_int(0)
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(number)) != 0:
        return 0
    return number.value
