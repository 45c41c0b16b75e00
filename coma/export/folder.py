"""An export's folder: what lies in it, how it comes there whole, and how it is read again.

DIR/model.safetensors     the backbone in float32, under timm's names
DIR/config.json           what timm makes the model of, and a section `coma` of what only coma asks for
DIR/README.md             the model card
DIR/decoder.safetensors   for those who go on pre-training, if asked for
DIR/model.onnx            if asked for
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
from coma.shards.files import hash_file

WEIGHTS_NAME = "model.safetensors"
DECODER_NAME = "decoder.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
ONNX_NAME = "model.onnx"
NAMES = frozenset({WEIGHTS_NAME, DECODER_NAME, CONFIG_NAME, CARD_NAME, ONNX_NAME})
SECTION = "coma"


@dataclass(frozen=True)
class Export:
    """An export that is there, as its config.json describes it."""

    folder: Path
    model: str
    method: str
    patch_size: int
    """Of the backbone, pixels."""
    image_size: int
    """Side of the images that it was trained on, pixels; the shorter one."""
    decoder: bool

    def weights(self) -> dict[str, Tensor]:
        """Return the backbone's weights. Raises DataError."""
        return _tensors(self.folder / WEIGHTS_NAME)

    def decoder_weights(self) -> dict[str, Tensor]:
        """Return the decoder's weights. Raises DataError."""
        return _tensors(self.folder / DECODER_NAME)

    def digest(self) -> str:
        """Return a hash of all weights."""
        import xxhash

        found = xxhash.xxh3_64()
        for name in (WEIGHTS_NAME, *([DECODER_NAME] if self.decoder else [])):
            try:
                hash_file(self.folder / name, found)
            except OSError as error:
                raise DataError(
                    f"{self.folder / name} cannot be read: {error.strerror}: export the run anew"
                ) from None
        return found.hexdigest()


def is_export(folder: Path) -> bool:
    """Tell an export from a run folder and its checkpoints, by the weights' name."""
    return (folder / WEIGHTS_NAME).is_file()


def read_export(folder: Path) -> Export:
    """Read what `coma export` wrote.

    Raises:
        DataError: there is no such folder, or something else in it.
    """
    if not folder.is_dir():
        raise DataError(
            f"no export at {folder}: " + ("it is a file" if folder.exists() else "no such folder")
        )
    content = _content(folder)
    if content is None:
        raise DataError(f"{folder} was not written by `coma export`: it has no {CONFIG_NAME} that says so")
    try:
        section, sizes = content[SECTION], content["model_args"]["img_size"]
        return Export(
            folder=folder,
            model=str(section["model"]),
            method=str(section["method"]),
            patch_size=int(section["patch_size"]),
            image_size=int(min(sizes) if isinstance(sizes, list) else sizes),
            decoder=bool(section["decoder"]),
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder / CONFIG_NAME} is damaged: export the run anew") from None


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, which takes its place when the block ends well.

    What stood in its place goes only if it was an export and nothing else. A killed process leaves the
    hidden temporary behind.

    Raises:
        UsageError: something else stands there.
        ComaError: it could not be written.
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
            check_free(folder)  # it may be long since
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
        raise ComaError(
            f"{folder} could not be written: {reason}: make room, or name another folder"
        ) from error


def check_free(folder: Path) -> None:
    """Refuse to replace anything but an empty folder or an export.

    Raises:
        UsageError: saying what is there.
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
    if others or (any(folder.iterdir()) and _content(folder) is None):
        found = f"holds {others[0]!r}" if others else "was not written by `coma export`"
        raise UsageError(f"{folder} {found} and would be replaced: name another folder, or empty it")


def _content(folder: Path) -> dict[str, Any] | None:
    """Return config.json, None if it says nothing of coma."""
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_text())
        return content if isinstance(content[SECTION], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(folder: Path) -> None:
    """Remove a folder of exports' files; one with anything else in it stays."""
    with suppress(OSError):
        for name in NAMES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, which can't hold code, and nothing else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"{path} is missing, and no other kind of weights is read: export the run anew")
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no safetensors file ({reason}): export the run anew") from None
