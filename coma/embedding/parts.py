"""Parts: runs of images whose features are computed and kept together, so that a killed command goes on where it was.

    .OUT.coma-embed/        work folder beside OUT, removed when OUT is whole
      settings.json         what the features depend on
      part-000012.safetensors  features of one part, and what was set aside of it
      images-000012.bin     checked images of the part at hand, if they are not sharded
      spool/                images of parquet rows
      lock                  held by the command

Legend: n images of a part, C channels, h x w the map of an image.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coma.errors import DataError, UsageError
from coma.shards.files import remove_temporaries, replacing, write_atomically
from coma.shards.locks import NO_LOCKS, file_lock

PART_IMAGES = 256
PART_BYTES = 2**26
"""Most images of a part, and most bytes of its features."""
SETTINGS_NAME, LOCK_NAME, SPOOL_NAME = "settings.json", "lock", "spool"
_DAMAGED = "damaged"


@dataclass(frozen=True)
class Part:
    """A run of images of a section, [start, stop)."""

    number: int
    section: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File of its features in the work folder."""
        return f"part-{self.number:06}.safetensors"

    @property
    def images_name(self) -> str:
        """File of its checked images in the work folder."""
        return f"images-{self.number:06}.bin"


def cut(lengths: Sequence[int], batch_size: int, bytes_per_image: int) -> list[Part]:
    """Cut sections of these lengths into parts of whole batches."""
    most = min(PART_IMAGES, PART_BYTES // bytes_per_image)
    length = max(1, most // batch_size) * batch_size
    parts: list[Part] = []
    for section, images in enumerate(lengths):
        for start in range(0, images, length):
            parts.append(Part(len(parts), section, start, min(start + length, images)))
    return parts


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the n good images of a part, and the reasons for the others."""

    samples: npt.NDArray[np.int64]  # [n] places in the section
    vectors: npt.NDArray[np.floating[Any]]  # [n, C]
    maps: npt.NDArray[np.floating[Any]] | None  # [n, h, w, C]
    damaged: dict[int, str]
    """Place in the section of each image that is set aside, and the reason."""


def write_part(path: Path, features: Features) -> None:
    """Write a part, whole or not at all."""
    from safetensors.numpy import save

    tensors = {"samples": features.samples, "vectors": features.vectors}
    if features.maps is not None:
        tensors["maps"] = features.maps
    damaged = json.dumps({str(sample): reason for sample, reason in sorted(features.damaged.items())})
    with replacing(path) as file:
        file.write(save(tensors, metadata={_DAMAGED: damaged}))


def read_part(path: Path) -> Features:
    """Read a part. Raises DataError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        damaged = {int(sample): reason for sample, reason in json.loads(metadata[_DAMAGED]).items()}
        return Features(tensors["samples"], tensors["vectors"], tensors.get("maps"), damaged)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it, then run the same command again") from None


class WorkFolder:
    """The work folder of one OUT."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.coma-embed")

    def settings(self) -> dict[str, Any] | None:
        """Return the settings of the unfinished run that it holds; None if there is none."""
        try:
            settings: dict[str, Any] = json.loads((self.path / SETTINGS_NAME).read_text())
        except (OSError, ValueError):
            return None
        return settings

    @contextmanager
    def held(self, settings: dict[str, Any], *, overwrite: bool) -> Iterator[Path]:
        """Make the folder for these settings, or take it up again, and hold its lock for the length of a block.

        Raises:
            UsageError: another process holds it, or it is of other settings, which `overwrite` allows to remove.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            before = self.settings()
            if before is not None and before != settings:
                if not overwrite:
                    raise UsageError(
                        f"{self.path} holds an unfinished run with {difference(before, settings)}: repeat that "
                        "command, or give --overwrite to begin anew"
                    )
                self._empty()
            elif before is None:
                self._empty()
            write_atomically(self.path / SETTINGS_NAME, json.dumps(settings, indent=1))
            remove_temporaries(self.path)
            for left in self.path.glob("images-*.bin"):
                left.unlink(missing_ok=True)
            yield self.path

    def remove(self) -> None:
        """Remove it with all that the command wrote into it."""
        self._empty()
        shutil.rmtree(self.path, ignore_errors=True)

    def _empty(self) -> None:
        for pattern in (SETTINGS_NAME, "part-*.safetensors", "images-*.bin", ".*.coma-tmp"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)
        shutil.rmtree(self.path / SPOOL_NAME, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(file_lock(self.path / LOCK_NAME))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                lock = 0
            if lock is None:
                raise UsageError(f"another process is writing {self.out}: wait for it, or name another OUT")
            yield


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what the settings of an earlier run say that these do not, in a few words."""
    names = [name for name in before if before[name] != after.get(name)]
    if names in (["changed"], ["fingerprint"], ["fingerprint", "changed"]):
        return "images that have changed since"
    return ", ".join(f"{name.replace('_', ' ')} {before[name]}" for name in names[:2]) or "other settings"
