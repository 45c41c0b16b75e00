"""Result of one check of `coma doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Result of a check."""

    status: Literal["ok", "warning", "problem"]
    text: str
    advice: str = ""
    """What to do about it; empty if the status is ok."""

    def to_json(self) -> dict[str, str]:
        """Return the fields as JSON values."""
        return asdict(self)
