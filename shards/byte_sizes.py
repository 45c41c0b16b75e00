"""Sizes in bytes as people write them, such as 256MiB or 1GB."""

import re

from coma.errors import UsageError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}


def parse_bytes(text: str, flag: str) -> int:
    """Parse "256MiB", "1GB", "1.5 g" or "268435456" as bytes. Raises UsageError, which names `flag`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"{flag} {text} is not a size; write it like 256MiB, 1GB or 268435456")
    return int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]
