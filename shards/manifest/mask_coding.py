"""Coding of segmentation masks: which value of a pixel is which class, and which value is none.

The bytes of a mask stay what they were in the source, so a data set keeps the coding beside them; a reader turns values
into class ids, 0, 1, ..., with `IGNORED` for pixels of no class.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coma.errors import UsageError

IGNORED = 255
"""Class id of a pixel without a class, in every decoded mask."""
MOST_CLASSES = 255
"""Class ids are 0 to 254."""
MASKS_KEY = b"coma.masks"
"""Key of the coding in a manifest's metadata."""


@dataclass(frozen=True)
class MaskCoding:
    """Classes of the masks of a data set, and the values that stand for them."""

    classes: tuple[str, ...] | None
    """Names by class id; None: the classes are not known before all masks have been read."""
    values: tuple[int, ...]
    """Value of each class: a grey level, an index into a palette, or a colour as 0xRRGGBB."""
    ignored: int | None
    """Value of pixels without a class, which goes before those of classes; None: there is no such value."""
    in_colour: bool = False
    """Whether the values are colours."""

    def with_classes(self, count: int) -> "MaskCoding":
        """Return the coding with `count` classes that are named by their ids, if it has none yet."""
        if self.classes is not None:
            return self
        return MaskCoding(tuple(map(str, range(count))), self.values[:count], self.ignored, self.in_colour)

    def shown(self, value: int) -> str:
        """Return a value as text."""
        return f"#{value:06x}" if self.in_colour else str(value)

    def to_json(self) -> dict[str, Any]:
        """Return the coding as plain JSON types."""
        return asdict(self) | {
            "classes": None if self.classes is None else list(self.classes),
            "values": list(self.values),
        }

    def to_metadata(self) -> bytes:
        """Return the coding as it stands in a manifest's metadata."""
        return json.dumps(self.to_json()).encode()


def coding_from_json(about: dict[str, Any]) -> MaskCoding:
    """Return the coding that `MaskCoding.to_json` describes. Raises KeyError, TypeError, ValueError for others."""
    classes = about["classes"]
    ignored = about["ignored"]
    return MaskCoding(
        classes=None if classes is None else tuple(map(str, classes)),
        values=tuple(map(int, about["values"])),
        ignored=None if ignored is None else int(ignored),
        in_colour=bool(about["in_colour"]),
    )


def grey_coding(names: Sequence[str] | int | None, ignored: int | None = IGNORED) -> MaskCoding:
    """Return the coding of masks whose values are class ids, from 1 if 0 is ignored (as in ADE20K), else from 0.

    Args:
        names: the classes, or how many there are; None: that is not known yet.
        ignored: value of pixels without a class.

    Raises:
        UsageError: there are more classes than ids.
    """
    first = 1 if ignored == 0 else 0
    if names is None:
        return MaskCoding(None, tuple(range(first, first + MOST_CLASSES)), ignored)
    check_count(names if isinstance(names, int) else len(names))
    classes = tuple(map(str, range(names))) if isinstance(names, int) else tuple(names)
    return MaskCoding(classes, tuple(range(first, first + len(classes))), ignored)


def check_count(classes: int) -> None:
    """Raise UsageError for a number of classes that class ids do not reach."""
    if not 1 <= classes <= MOST_CLASSES:
        raise UsageError(
            f"{classes:,} classes of masks: give 1 to {MOST_CLASSES}, which are the ids that a mask of 8 bits has "
            f"besides {IGNORED} for pixels without a class"
        )
