"""Result of one check of `coma doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    status: Literal["ok", "warning", "problem"]
    text: str
    advice: str = ""
    """What to do about it; empty if all is well."""

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)
