"""Data sets of a mixture as a user names them: "a-shards:0.7", a folder or URL and its share of the images."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from coma.errors import UsageError
from coma.shards.files import folder_at, without_credentials

MOST_WEIGHT = 2**30
"""Sum of the whole weights that shares are turned into, at most."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_HOST_ONLY = re.compile(r"[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)


@dataclass(frozen=True)
class NamedSource:
    """One data set of a mixture."""

    place: str | Path
    """Folder or URL."""
    written: str | None = None
    """Its share as it was written; None: the number of its samples."""

    def __str__(self) -> str:
        """Return the text that names it on a command line."""
        return str(self.place) if self.written is None else f"{self.place}:{self.written}"

    @property
    def share(self) -> Fraction | None:
        """The share as an exact number, relative to those of the others."""
        return None if self.written is None else Fraction(self.written)

    def absolute(self) -> "NamedSource":
        """Return the source with an absolute path, and without the credentials of a URL."""
        return NamedSource(without_credentials(str(folder_at(self.place).absolute())), self.written)


def named_sources(data: Sequence[Any]) -> tuple[NamedSource, ...]:
    """Read the data sets of a mixture.

    Args:
        data: one or more folders or URLs, each as a text that may end in a colon and its share, or as a pair of both.

    Raises:
        UsageError: a share is no number above 0, or some have one and others none; or one data set alone has one.
    """
    sources = tuple(map(_named, data))
    if not sources:
        raise UsageError("no data set is named: name one, such as photos-shards")
    if len(sources) == 1 and sources[0].written is not None:
        raise UsageError(
            f"{_shown(sources[0])} is the only data set, and a share is a part of several: leave "
            f":{sources[0].written} out"
        )
    with_share = [each for each in sources if each.written is not None]
    if with_share and len(with_share) < len(sources):
        without = next(each for each in sources if each.written is None)
        raise UsageError(
            f"{_shown(with_share[0])} has a share and {_shown(without)} has none: give all a share, such as "
            f"{_shown(without)}:1, or none, and each is shown as often as it has images"
        )
    whole_weights(sources, [1] * len(sources))
    return sources


def whole_weights(sources: Sequence[NamedSource], samples: Sequence[int]) -> tuple[int, ...]:
    """Return shares as whole numbers without a common divisor, which add up to `MOST_WEIGHT` at most.

    They are exact, unless that takes more digits: then they are rounded to a billionth of the whole.

    Args:
        sources: [M] data sets, all with a share, or none: then the share is the number of samples.
        samples: [M] of each data set.

    Raises:
        UsageError: a share is less than a billionth of the whole.
    """
    exact = [source.share or Fraction(count) for source, count in zip(sources, samples, strict=True)]
    whole = sum(exact)
    scale = math.lcm(*(each.denominator for each in exact))
    weights = [int(each * scale) for each in exact]
    divisor = math.gcd(*weights)
    weights = [weight // divisor for weight in weights]
    if sum(weights) > MOST_WEIGHT:
        weights = [int(each * (MOST_WEIGHT - len(exact)) / whole) for each in exact]
    if min(weights) < 1:
        least = sources[weights.index(min(weights))]
        raise UsageError(
            f"the share of {_shown(least.place)} is {least.written or 'its number of images'}, less than a billionth "
            "of the whole: give it more, or leave that data set out"
        )
    return tuple(weights)


def _named(item: Any) -> NamedSource:
    if isinstance(item, tuple | list):
        if len(item) != 2:
            raise UsageError(f"data has {item!r}; give a data set and its share, such as ('a-shards', 0.7)")
        place, share = item
        if share is None:
            return NamedSource(_text(place))
        written = "" if isinstance(share, str | bool) else f"{share}"
        if not _NUMBER.fullmatch(written):
            raise UsageError(f"the share of {_shown(place)} is {share!r}; give a decimal number above 0, such as 0.7")
        if written.isdigit():
            written += ".0"  # which no port is
        return NamedSource(_text(place), _checked(place, written))
    text = _text(item)
    if not isinstance(text, str):
        return NamedSource(text)
    place, colon, written = text.rpartition(":")
    port = _HOST_ONLY.fullmatch(place) and written.isdigit()
    if not colon or port or _is_there(text):  # a port is no share, and a folder may have such a name
        return NamedSource(text)
    if _NUMBER.fullmatch(written) or (_is_there(place) and not written.startswith("//")):
        return NamedSource(_text(place), _checked(place, written))
    return NamedSource(text)


def _text(place: Any) -> str | Path:
    """Return a folder or URL as a text; a path of universal_pathlib, which may hold a login, as it is."""
    if hasattr(place, "protocol"):
        return place  # type: ignore[no-any-return]
    try:
        text = os.fspath(place)
    except TypeError:
        text = b""
    if isinstance(text, str) and text:
        return text
    raise UsageError(f"data has {place!r}; give a folder or a URL, or a pair of it and its share")


def _checked(place: object, written: str) -> str:
    """Return a share that is a finite number above 0."""
    if not (_NUMBER.fullmatch(written) and math.isfinite(float(written)) and Fraction(written) > 0):
        raise UsageError(f"the share of {_shown(place)} is {written!r}; give a decimal number above 0, such as 0.7")
    return written


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long a name, or a folder that may not be looked into
        return False


def _shown(place: object) -> str:
    return without_credentials(str(place))
