"""Environments made of this one's packages without some of them, and the checkout on the PYTHONPATH."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import coma


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which coma is not installed: its folder lies, as a link, on the PYTHONPATH."""

    python: Path
    sources: Path

    def coma(self, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the command in a folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [self.python, "-m", "coma", *map(str, words)],
            cwd=cwd,
            env={**kept, "PYTHONPATH": str(self.sources), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
        )


def without_coma(folder: Path, leave_out: Collection[str] = ()) -> Environment:
    """Make an environment in `folder`, by links: what is here, without coma's metadata and the modules named.

    The name of a module is given as its path: "nvidia/dali". Distributions of the same beginning go with it.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        inside = [name for name in leave_out if name.startswith(f"{entry.name}/")]
        gone = entry.name.startswith(("coma_vision", "__editable__", *(name.replace("/", "_") for name in leave_out)))
        if inside:
            (site / entry.name).mkdir()
            for module in entry.iterdir():
                if f"{entry.name}/{module.name}" not in inside:
                    (site / entry.name / module.name).symlink_to(module)
        elif not gone and entry.name not in leave_out:
            (site / entry.name).symlink_to(entry)
    (folder / "sources").mkdir()
    (folder / "sources" / "coma").symlink_to(Path(coma.__file__).parent)
    return Environment(folder / "venv" / "bin" / "python", folder / "sources")
