"""Options of masks, light to import."""

from dataclasses import dataclass
from typing import Literal

from coma.errors import UsageError


@dataclass(frozen=True)
class MaskOptions:
    """What the command line says of masks."""

    pattern: str | None = None
    """Which pictures they are; None: told from the names."""
    classes: str | None = None
    """Number of classes, or a file of their names."""
    ignored: int | Literal["none"] | None = None
    """Value of pixels without a class; None: by the layout, or 255."""

    def refuse(self, why: str) -> None:
        """Raise UsageError, which names the first option that was given and says why it has no meaning."""
        given = {"--masks": self.pattern, "--mask-classes": self.classes, "--mask-ignore": self.ignored}
        for flag, value in given.items():
            if value is not None:
                raise UsageError(f"{flag} {value}: {why}")

    def ignored_or(self, default: int | None) -> int | None:
        """Return the value of pixels without a class; None if there is none."""
        return default if self.ignored is None else None if self.ignored == "none" else self.ignored
