"""Wheels: this project's, as uv builds it, and small ones of other distributions; and their installation."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
UV = os.environ.get("UV") or shutil.which("uv", path=f"{ROOT}/.uv/bin:{os.environ['PATH']}") or "uv"


def build_wheel(folder: Path) -> Path:
    """Build this project's wheel into a folder, without a network."""
    command = [UV, "build", "-q", "--wheel", "--offline", "--out-dir", folder, ROOT]
    subprocess.run(command, check=True, timeout=120)
    (built,) = folder.glob("coma_vision-*.whl")
    return built


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """Write a wheel of these files, with the hashes that installers copy to RECORD."""
    about = f"{name}-{version}.dist-info"
    contents = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{about}/RECORD,,"]
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text.encode())}")
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**contents, f"{about}/RECORD": "\n".join(lines)}.items():
            archive.writestr(path, text)
    return wheel


def install_wheel(wheel: Path, *where: str | Path) -> None:
    """Install a wheel alone, `where` as uv takes it: --python PYTHON or --target FOLDER."""
    command = [UV, "pip", "install", "-q", "--offline", "--no-index", "--no-deps", *where, wheel]
    subprocess.run(command, check=True, timeout=60)


def uninstall(name: str, python: Path) -> None:
    """Uninstall a distribution from the environment of `python`."""
    subprocess.run([UV, "pip", "uninstall", "-q", "--python", python, name], check=True, timeout=60)
