"""Labels and splits of tables of images: usual names of columns, splits from file names, labels as numbers."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coma.errors import DataError
from coma.shards.sources.listing import printable
from coma.shards.sources.splits import last_split_in

log = logging.getLogger(__name__)

Label = int | str | None
"""A label in a table; None where it is missing."""


def split_from_name(path: str) -> str:
    """Return the split that a file's name has as a word, else that of the nearest folder, else train.

    Examples are "data/train-00000-of-00294.parquet", "default/validation/0000.parquet" and "my_test.csv".
    """
    return last_split_in(path) or "train"


def find_column(usual_names: Sequence[str], columns: Iterable[str]) -> str | None:
    """Return the column that has the first of the usual names, ignoring case; None if there is none."""
    by_name = {column.strip().lower(): column for column in reversed(list(columns))}
    return next((by_name[name] for name in usual_names if name in by_name), None)


@dataclass(frozen=True)
class NumberedLabels:
    """Labels as the manifest stores them."""

    labels: dict[str, list[int] | None]
    """Split → label of each of its images, or None for a split without labels."""
    class_names: tuple[str, ...] | None


def number_labels(
    source: object, values: Mapping[str, Sequence[Label]], class_names: tuple[str, ...] | None = None
) -> NumberedLabels:
    """Number the labels: integers are kept (-1 is a missing label), other labels are numbered in sorted order.

    `values` are the labels of each split, `class_names` the names of integer labels if they are known. A split in
    which an image has no label is taken without labels, with a warning. Raises DataError, which names `source`, for
    integers that cannot be labels.
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
                raise DataError(f"{source} has the label {value}; labels go from 0 to {limit}, -1 is none")
        return NumberedLabels(
            {split: [int(v) for v in whole[split]] if split in whole else None for split in values},
            class_names if whole else None,
        )
    names = sorted({str(value) for value in distinct}, key=os.fsencode)
    index = {name: i for i, name in enumerate(names)}
    return NumberedLabels(
        {split: [index[str(v)] for v in whole[split]] if split in whole else None for split in values},
        tuple(map(printable, names)),
    )
