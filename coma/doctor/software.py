"""Checks of the installed software: each uses a part as training will."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from coma.doctor.finding import Finding

if TYPE_CHECKING:
    import torch

_SHOWN = ("torch", "deepspeed", "timm")
_PATIENCE = datetime.timedelta(seconds=30)
_SIDE = 64  # pixels
_OWN_BYTES = 3e9
"""Most that the checks running at the same time hold of a GPU's memory themselves."""


def installed_files() -> Finding:
    """Check that the files are those that were installed, and that no other distribution brings a module `coma`."""
    from coma.installed.installation import changed_files, installation, namesake
    from coma.installed.versions import DISTRIBUTION, checkout_folder, coma_version

    other, changed = namesake(), changed_files()
    texts = []
    if other is not None:
        texts.append(f"{other.name} {other.version} is an unrelated distribution whose module is `coma` too")
    if changed:
        more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
        texts.append(f"changed since the installation: {changed[0]}{more}")
    if texts:
        others = (other.name,) if other is not None else ()
        return Finding("problem", "; ".join(texts), installation().reinstall(*others))
    checkout = checkout_folder()
    return Finding("ok", f"{DISTRIBUTION} {coma_version()}" + (f", the checkout {checkout}" if checkout else ""))


def versions() -> Finding:
    """Check every library that coma requires against the versions it requires; DALI whichever its CUDA is."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    from coma.installed.cuda import cuda_packages
    from coma.installed.installation import installation
    from coma.installed.versions import coma_requirements

    required, dali = coma_requirements(), cuda_packages()
    if required is None:
        text = "not checked: coma-vision is not installed, and no pyproject.toml beside it says what it requires"
        return Finding("warning", text, "install it (docs/install.md), or put a whole checkout on the PYTHONPATH")
    wrong = []
    for line in required:
        wanted = Requirement(line)
        if wanted.name not in dali and wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            installed = "missing"
        if installed == "missing" or not wanted.specifier.contains(installed, prereleases=True):
            wrong.append((f"{wanted.name} {installed}", f"{wanted.name}{wanted.specifier}"))
    if wrong:
        advice = installation().restore(*(needed for _, needed in wrong))
        return Finding("problem", ", ".join(installed for installed, _ in wrong), advice)
    shown = [f"{name} {version(name)}" for name in (*_SHOWN, *dali)]
    return Finding("ok", ", ".join([f"python {platform.python_version()}", *shown]))


def cuda() -> Finding:
    """Check that torch, DALI and the driver are made for CUDAs that go together."""
    from coma.installed.cuda import cuda_versions, judge

    judgement = judge(cuda_versions())
    return Finding(judgement.status, judgement.text, judgement.advice)


def gpus() -> Finding:
    """Check the GPUs that torch can compute on, or say why it cannot although there is a driver."""
    import torch

    driver, built = _driver(), torch.version.cuda
    if not torch.cuda.is_available():
        if driver is None:
            return Finding("ok", f"none, training runs on the CPU (torch is built for CUDA {built or 'none'})")
        if built is None:
            text = f"driver {driver}, but this torch is built without CUDA"
            return Finding("problem", text, "install a torch for that driver's CUDA, see pytorch.org")
        text = f"driver {driver}, but torch (CUDA {built}) finds no GPU it can use"
        return Finding("problem", text, "see nvidia-smi; update the driver; start containers with --gpus all")
    devices, held_by_others = [], False
    for number in range(torch.cuda.device_count()):
        values = torch.ones(64, 64, device=f"cuda:{number}")
        if float((values @ values).sum()) != 64**3:
            return Finding("problem", f"GPU {number} computes wrongly", "leave it out: export CUDA_VISIBLE_DEVICES")
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        devices.append(f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
        held_by_others |= total - free > max(0.1 * total, _OWN_BYTES)
    text = "; ".join([*devices, f"driver {driver or 'unknown'}, CUDA {built}"])
    if held_by_others:
        return Finding("warning", text, "another process holds memory there: see nvidia-smi")
    return Finding("ok", text)


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, None if there is none."""
    try:
        number = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return number.group() if number else "of an unknown version"


def nccl() -> Finding:
    """Check NCCL, by which GPUs communicate."""
    import torch

    if not torch.cuda.is_available():
        return Finding("ok", "not needed without a GPU")
    try:
        _all_reduce("nccl", torch.device("cuda"))
    except (RuntimeError, ValueError) as error:
        return Finding("problem", _first_line(error), "NCCL_DEBUG=INFO coma pretrain ... says where it fails")
    version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return Finding("ok", "version " + ".".join(map(str, version)))


def gloo() -> Finding:
    """Check gloo, by which processes communicate about what is not on a GPU."""
    import torch

    try:
        _all_reduce("gloo", torch.device("cpu"))
    except (RuntimeError, ValueError) as error:
        advice = "name the network interface to use: export GLOO_SOCKET_IFNAME=lo, or that between the machines"
        return Finding("problem", _first_line(error), advice)
    return Finding("ok", "an all-reduce works")


def _all_reduce(backend: str, device: torch.device) -> None:
    import torch
    import torch.distributed as dist

    from coma.training.processes.world import free_port

    address = f"tcp://127.0.0.1:{free_port()}"
    dist.init_process_group(backend, init_method=address, rank=0, world_size=1, timeout=_PATIENCE)
    values = torch.arange(3.0, device=device)
    dist.all_reduce(values)
    if values.tolist() != [0.0, 1.0, 2.0]:
        raise RuntimeError(f"{backend} returned {values.tolist()} for 0, 1, 2")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def compiler() -> Finding:
    """Check for C++ and CUDA compilers, which only --compile and DeepSpeed's own optimizers need."""
    import torch

    cxx = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if cxx is None:
        advice = 'apt install g++, or do without --compile and keep "torch_adam": true in a --ds-config'
        return Finding("warning", "no C++ compiler", advice)
    toolkit, built = _toolkit(), torch.version.cuda
    text = f"{cxx}, CUDA toolkit {toolkit or 'none'}"
    if torch.cuda.is_available() and toolkit and built and toolkit.split(".")[0] != built.split(".")[0]:
        advice = f'install a toolkit {built.split(".")[0]}.x, or keep "torch_adam": true in a --ds-config'
        return Finding("warning", f"{text}, but torch is built for {built}", advice)
    return Finding("ok", text)


def _toolkit() -> str | None:
    """Return the version of the CUDA toolkit, None if there is none."""
    nvcc = shutil.which("nvcc") or shutil.which(
        "nvcc", path=str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"))
    )
    if nvcc is None:
        return None
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    release = re.search(r"release (\d+\.\d+)", output)
    return release.group(1) if release else None


def deepspeed_ops() -> Finding:
    """Tell which of DeepSpeed's own kernels could be compiled here; the packaged configurations need none."""
    from coma.training.engine.engine import buildable_kernels

    names = buildable_kernels()
    return Finding(
        "ok", f"can compile {', '.join(names)}" if names else "can compile no kernel of its own, and needs none"
    )


def decoding() -> Finding:
    """Check decoding: a JPEG through shards, reader and DALI, on the CPU and on a GPU if there is one."""
    import torch
    from PIL import Image

    from coma.errors import UsageError
    from coma.installed.cuda import check_dali

    try:
        check_dali()
    except UsageError as error:
        return Finding("problem", "not checked", str(error))
    from coma.pipeline import Stream
    from coma.shards.write.options import ShardOptions
    from coma.shards.write.writer import shard

    where = ["cpu", "gpu"] if torch.cuda.is_available() else ["cpu"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        Image.new("RGB", (_SIDE, _SIDE), (200, 100, 50)).save(folder / "images" / "1.jpg", quality=95)
        shard(folder / "images", folder / "data", ShardOptions(workers=1))
        for decode in where:
            device = "cuda" if decode == "gpu" else "cpu"
            with Stream(
                folder / "data", batch_size=1, image_size=_SIDE, training=False, device=device, decode=decode, workers=1
            ) as stream:
                shown = _as_seen(next(stream).images[0])
            if max(abs(a - b) for a, b in zip(shown, (200, 100, 50), strict=True)) > 5:
                return Finding(
                    "problem", f"on the {decode} a JPEG of 200, 100, 50 came out as {shown}", "reinstall DALI"
                )
    return Finding("ok", f"a JPEG, on the {' and on the '.join(where)}")


def _as_seen(image: torch.Tensor) -> list[int]:
    """Return the mean red, green and blue of a normalised image, 0 to 255."""
    import torch

    from coma.pipeline import MEAN, STD

    mean = image.float().cpu().mean(dim=(1, 2)) * torch.tensor(STD) + torch.tensor(MEAN)
    return [round(value * 255) for value in mean.tolist()]


def network(url: str) -> Finding:
    """Check that the store at `url` answers and has a data set there."""
    from coma.errors import ComaError
    from coma.shards.files import folder_at, is_there, without_credentials
    from coma.shards.manifest import INFO_NAME

    began_s = time.perf_counter()
    try:
        has_data = is_there(folder_at(url) / INFO_NAME)
    except (OSError, ComaError) as error:
        return Finding("problem", _first_line(error), "see the address, the credentials, and proxies (HTTPS_PROXY)")
    text = f"{without_credentials(url)} answers within {time.perf_counter() - began_s:.2f} s"
    if not has_data:
        return Finding("warning", f"{text}, but has no {INFO_NAME}", "name the folder that coma shard wrote")
    return Finding("ok", text)
