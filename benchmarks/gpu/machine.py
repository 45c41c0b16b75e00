"""The machine and the versions that a record was made with; asked for in the part's own process."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = ("deepspeed", "timm", "torchvision", "triton", "numpy", "pillow")
_ASKED = ("driver_version", "power.limit", "temperature.gpu", "clocks.sm", "clocks.mem", "pstate")
_ROOT = Path(__file__).parents[2]


def describe(device: str) -> dict[str, Any]:
    """Return what a reader must know of the machine to compare a figure with another one's."""
    import torch

    from coma.pipeline.decode import DALI_VERSION

    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dali": DALI_VERSION,
        **{name: _version(name) for name in _DISTRIBUTIONS},
        "revision": _revision(),
    }
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": round(total / 1e9, 1),
            "gpu_free_gb": round(free / 1e9, 1),
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            **_driver(),
        }
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _driver() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU; nothing where it cannot be run."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_ASKED, values, strict=False))


def _revision() -> str | None:
    """Return the commit of this checkout, None where there is no git or no repository."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
