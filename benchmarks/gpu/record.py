"""Records of parts on disk, and the setting that they share."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coma.shards.files import write_atomically

Row = dict[str, str | int | float | bool | None]
"""A row of a part's table: figures with their units in the names."""


@dataclass(frozen=True)
class Setting:
    """What all parts of one command have in common."""

    data: str
    out: str
    device: str
    """cuda or cpu; the latter rehearses."""
    quick: bool
    """Whether everything is as small as it can be."""
    budget_s: float
    """Seconds after which a part is killed; it ends by itself a little before."""
    command: str = ""
    """As it was typed."""

    def to_text(self) -> str:
        """Return the setting as JSON, for `setting_from`."""
        return json.dumps(asdict(self))

    def identity(self) -> dict[str, Any]:
        """Return what records must share to stand in one report."""
        return {"data": self.data, "device": self.device, "quick": self.quick}


def record_path(out: Path, part: str) -> Path:
    """Return the file of a part's record."""
    return out / f"{part}.json"


def read_record(out: Path, part: str) -> dict[str, Any] | None:
    """Read a part's record, None if there is none that can be read."""
    try:
        record = json.loads(record_path(out, part).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(out: Path, part: str, record: Mapping[str, Any]) -> None:
    """Write a part's record in one piece."""
    write_atomically(record_path(out, part), json.dumps(record, indent=1) + "\n")


def setting_from(text: str) -> Setting:
    """Return the setting that `Setting.to_text` wrote."""
    return Setting(**json.loads(text))
