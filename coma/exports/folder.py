"""Folder of an export: its file names, writing it whole or not at all, and reading it again.

DIR/model.safetensors     the backbone in float32, under timm's names
DIR/config.json           timm's description of the model, and a section `coma` that only coma reads
DIR/README.md             the model card
DIR/decoder.safetensors   the decoder, for further pre-training, if asked for
DIR/model.onnx            the backbone as ONNX, if asked for
DIR/curves.png            loss and scores during training, of an export that is pushed to the Hub
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from coma.errors import ComaError, DataError, UsageError
from coma.pipeline.preprocessing import Preprocessing
from coma.runs.read import require_finite
from coma.shards.files import hash_file

WEIGHTS_NAME = "model.safetensors"
DECODER_NAME = "decoder.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
ONNX_NAME = "model.onnx"
CURVES_NAME = "curves.png"
NAMES = frozenset({WEIGHTS_NAME, DECODER_NAME, CONFIG_NAME, CARD_NAME, ONNX_NAME, CURVES_NAME})
SECTION = "coma"


@dataclass(frozen=True)
class Export:
    """An existing export, as its config.json describes it."""

    folder: Path
    config: dict[str, Any]
    """Content of config.json."""
    model: str
    method: str
    patch_size: int
    """Side of the backbone's patches in pixels."""
    image_size: int
    """Shorter side in pixels of the images that the backbone was trained on."""
    preprocessing: Preprocessing
    """How its images are normalised."""
    decoder: bool
    """Whether the decoder's weights are there."""

    def weights(self) -> dict[str, Tensor]:
        """Return the backbone's weights. Raises DataError, and DivergedError if they are not finite."""
        return _tensors(self.folder / WEIGHTS_NAME)

    def decoder_weights(self) -> dict[str, Tensor]:
        """Return the decoder's weights. Raises DataError, and DivergedError if they are not finite."""
        return _tensors(self.folder / DECODER_NAME)

    def digest(self) -> str:
        """Return a hash of all weights."""
        import xxhash

        digest = xxhash.xxh3_64()
        for name in (WEIGHTS_NAME, *([DECODER_NAME] if self.decoder else [])):
            try:
                hash_file(self.folder / name, digest)
            except OSError as error:
                raise DataError(f"{self.folder / name} cannot be read: {error.strerror}: export the run anew") from None
        return digest.hexdigest()


def is_export(folder: Path | str) -> bool:
    """Tell an export from a run folder and its checkpoints, by the weights' name."""
    folder = Path(folder)
    return (folder / WEIGHTS_NAME).is_file()


def read_export(folder: Path | str) -> Export:
    """Read what `coma export` wrote.

    Raises:
        DataError: there is no such folder, or something else in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no export at {folder}: " + ("it is a file" if folder.exists() else "no such folder"))
    config = _config_of(folder)
    if config is None:
        raise DataError(f"{folder} was not written by `coma export`: it has no {CONFIG_NAME} that says so")
    try:
        section, sizes = config[SECTION], config["model_args"]["img_size"]
        return Export(
            folder=folder,
            config=config,
            model=str(section["model"]),
            method=str(section["method"]),
            patch_size=int(section["patch_size"]),
            image_size=int(min(sizes) if isinstance(sizes, list) else sizes),
            preprocessing=Preprocessing.from_json(section.get("pixels")),
            decoder=bool(section["decoder"]),
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder / CONFIG_NAME} is damaged: export the run anew") from None


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, which takes its place when the block ends well.

    What stood there before is removed only if it was an export and nothing else. A killed process leaves the
    hidden temporary folder behind.

    Raises:
        UsageError: something else than an export stands there.
        ComaError: the folder could not be written.
    """
    from safetensors import SafetensorError

    place = folder.resolve()
    check_free(folder)
    temporary, before = (
        place.with_name(f".{place.name}.{os.urandom(4).hex()}.{what}") for what in ("coma-tmp", "coma-old")
    )
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            readable = temporary.stat().st_mode & 0o666  # safetensors would keep what it writes to its owner
            for path in temporary.iterdir():
                path.chmod(readable)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            check_free(folder)  # the block may have taken long
            if place.exists():
                place.rename(before)
            try:
                temporary.rename(place)
            except BaseException:
                if before.exists():
                    before.rename(place)
                raise
        except BaseException:
            _remove(temporary)
            raise
        _remove(before)
    except (OSError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error).splitlines()[0]).lower()
        raise ComaError(f"{folder} could not be written: {reason}: make room, or name another folder") from error


def check_free(folder: Path) -> None:
    """Refuse to replace anything but an empty folder or an export.

    Raises:
        UsageError: something else is there.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder), re.IGNORECASE):
        raise UsageError(f"{folder} is a URL: export to a folder here, and upload that")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a folder to export to")
    if folder.resolve() == Path.cwd():
        raise UsageError(f"{folder} is the folder you are in, which cannot be replaced: name one inside it")
    others = sorted(path.name for path in folder.iterdir() if path.name not in NAMES or not path.is_file())
    if others or (any(folder.iterdir()) and _config_of(folder) is None):
        reason = f"holds {others[0]!r}" if others else "was not written by `coma export`"
        raise UsageError(f"{folder} {reason} and would be replaced: name another folder, or empty it")


def _config_of(folder: Path) -> dict[str, Any] | None:
    """Return the content of config.json, None if it has no section `coma`."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_text())
        return config if isinstance(config[SECTION], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(folder: Path) -> None:
    """Remove an export's files, and the folder if nothing else is in it."""
    with suppress(OSError):
        for name in NAMES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; no format that could hold code is read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"{path} is missing, and no other kind of weights is read: export the run anew")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no safetensors file ({reason}): export the run anew") from None
    require_finite(tensors, path)
    return tensors
