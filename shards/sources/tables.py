"""What tables of images have in common: splits by name, columns by their usual names, labels in numbers."""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coma.errors import DataError
from coma.shards.sources.model import printable
from coma.shards.sources.tree import SPLIT_OF_FOLDER

log = logging.getLogger(__name__)

Label = int | str | None
"""As a table has it; None where it has none."""


def split_named(path: str) -> str:
    """Tell the split from a file's name, else from the nearest folder that names one: else it is train.

    "data/train-00000-of-00294.parquet", "default/validation/0000.parquet", "my_test.csv": the first word that is
    the name of a split.
    """
    for part in reversed(os.path.splitext(path)[0].split("/")):  # noqa: PTH122
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_OF_FOLDER:
                return SPLIT_OF_FOLDER[word]
    return "train"


def first_of(usual: Sequence[str], columns: Iterable[str]) -> str | None:
    """The first of the `usual` names that is among `columns`, whatever its case; None if none is."""
    by_name = {column.strip().lower(): column for column in reversed(list(columns))}
    return next((by_name[name] for name in usual if name in by_name), None)


@dataclass(frozen=True)
class Numbered:
    """Labels as the manifest takes them."""

    labels: dict[str, list[int] | None]
    """Split → label of each of its images, or None for a split without labels."""
    class_names: tuple[str, ...] | None


def numbered(
    source: object, values: Mapping[str, Sequence[Label]], class_names: tuple[str, ...] | None = None
) -> Numbered:
    """Number the labels: integers stay what they are, -1 is none; of anything else the sorted names are counted.

    `values` are the labels of each split, `class_names` what integers mean where that is known. A split with an
    image that has no label has none, which is said. Raises DataError, which names `source`, for integers that
    cannot be labels.
    """
    whole: dict[str, list[int | str]] = {}
    for split, column in values.items():
        given = [value for value in column if value is not None and value != -1]
        if len(given) == len(column):
            whole[split] = given
        elif given:
            missing = len(column) - len(given)
            log.warning(
                "split %s is taken without labels: %s of its %s images have none",
                split,
                f"{missing:,}",
                f"{len(column):,}",
            )
    distinct = {value for column in whole.values() for value in column}
    if all(isinstance(value, int) for value in distinct):
        most = 2**31 if class_names is None else len(class_names)
        for value in distinct:
            if not 0 <= int(value) < most:
                limit = "2147483647" if class_names is None else f"{most - 1}, the last that has a name"
                raise DataError(
                    f"{source} has the label {value}; labels go from 0 to {limit}, and -1 is none"
                )
        return Numbered(
            {split: [int(v) for v in whole[split]] if split in whole else None for split in values},
            class_names if whole else None,
        )
    names = sorted({str(value) for value in distinct}, key=os.fsencode)
    index = {name: i for i, name in enumerate(names)}
    return Numbered(
        {split: [index[str(v)] for v in whole[split]] if split in whole else None for split in values},
        tuple(map(printable, names)),
    )
