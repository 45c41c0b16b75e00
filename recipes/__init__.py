"""Packaged files of options, which `coma pretrain --config` takes by name; each begins with what it is for."""

from pathlib import Path

FOLDER = Path(__file__).parent


def packaged() -> dict[str, Path]:
    """Return the recipes by name, without `.yaml`."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
