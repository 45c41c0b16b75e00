"""Sizes of crops: constant, or growing over a run, which makes its early steps cheaper.

A pure function of the position in the run, like everything else that a step sees.
"""

from dataclasses import dataclass

from coma.errors import UsageError
from coma.pipeline.plain import whole_number

_GROWING = (4, 5)  # part of the run; its last fifth is at full size


@dataclass(frozen=True)
class CropSizes:
    """Sides of square crops that grow by a mask unit at a time, evenly over the first four fifths of a run.

    Args:
        first: side in pixels of the first crops.
        last: side in pixels of the crops in the last fifth of the run.
        unit_size: side of a mask unit in pixels.
        samples: number of samples that the run sees, over all epochs.

    Raises:
        UsageError: sides that are no multiples of the unit, or shrink.
    """

    first: int
    last: int
    unit_size: int
    samples: int = 1

    def __post_init__(self) -> None:
        """Validate the sizes; raise UsageError."""
        for field in ("first", "last", "unit_size", "samples"):
            object.__setattr__(self, field, whole_number(field, getattr(self, field)))
        unit = self.unit_size
        for name, size in (("image size", self.last), ("start size", self.first)):
            if unit < 1 or size < 1 or size % unit:
                fitting = f"; take {max(1, round(size / unit)) * unit}" if unit > 0 else ""
                raise UsageError(f"{name} {size} is no multiple of the mask unit's {unit} pixels{fitting}")
        if self.first > self.last:
            raise UsageError(
                f"start size {self.first} is above the image size {self.last}; crops grow: start with less"
            )
        if self.samples < 1:
            raise UsageError(f"crops that grow over {self.samples} samples; give 1 or more")

    def at(self, stop_sample: int) -> int:
        """Side in pixels of a batch with which `stop_sample` samples of the run are consumed."""
        numerator, denominator = _GROWING
        growths = (self.last - self.first) // self.unit_size
        grown = growths * denominator * stop_sample // (numerator * self.samples)
        return self.first + min(growths, grown) * self.unit_size

    def units(self, side: int) -> int:
        """Mask units in a crop of that side."""
        return (side // self.unit_size) ** 2
