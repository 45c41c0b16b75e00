"""Versions of coma and of what it requires, also where coma is not installed.

A checkout on the PYTHONPATH has no metadata: its pyproject.toml says the same. That file is asked first, since metadata
may be those of another coma that the checkout hides. Distributions are asked for only where their name is certain.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

DISTRIBUTION = "coma-vision"
"""The name under which coma is installed; the distribution called "coma" on the index is somebody else's."""
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def coma_version() -> str:
    """Return the version of coma, "unknown" if it is neither installed nor a checkout."""
    if project := _checkout():
        return str(project["version"])
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


def coma_requirements() -> list[str] | None:
    """Return what coma requires, as its metadata have it: "torch>=2.6", 'ray>=2.40; extra == "ray"'.

    None: it is neither installed nor a checkout.
    """
    if project := _checkout():
        extras: Mapping[str, list[str]] = project.get("optional-dependencies", {})
        optional = [f'{each}; extra == "{extra}"' for extra, wanted in extras.items() for each in wanted]
        return [*project["dependencies"], *optional]
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None


def checkout_folder() -> Path | None:
    """Return the root of the checkout that is imported, None for an installed wheel."""
    return _PYPROJECT.parent if _checkout() else None


def library_versions(*modules: str) -> dict[str, str]:
    """Import these modules, and return the version that each gives itself: torch says its CUDA, 2.10.0+cu128."""
    return {module: str(getattr(import_module(module), "__version__", "unknown")) for module in modules}


@cache
def _checkout() -> dict[str, Any]:
    """Return [project] of the pyproject.toml beside the package, empty if there is none or it is of something else."""
    try:
        project: dict[str, Any] = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return {}
    return project if project.get("name") == DISTRIBUTION else {}
