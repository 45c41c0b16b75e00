"""Labels and splits of tables of images: values as labels, labels as numbers, splits from file names."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

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


SEVERAL_LABELS = "it holds several labels for an image, which has one here"


class NotLabelsError(Exception):
    """Values of a column that cannot be labels; the message says what they are."""


def as_labels(values: Iterable[object]) -> list[Label]:
    """Return the values of a column as labels: whole numbers of any type, text, lists of one of these.

    Null, NaN, empty text and empty lists are missing labels. Raises NotLabelsError for any other value.
    """
    return list(map(_as_label, values))


def named(values: Sequence[object], names: Sequence[str] | None) -> list[object]:
    """Return values with integers replaced by their names, as far as they have one."""
    name_of = dict(enumerate(names or ()))
    return [name_of.get(value, value) if isinstance(value, int) else value for value in values]


def labels_of_column(
    source: object, column: str, read: Callable[[], list[Label]], count: int, asked: bool
) -> list[Label]:
    """Return the labels [count] that `read` returns, or only missing ones, with a warning, if it raises NotLabelsError.

    Raises DataError instead of the warning if the column was `asked` for.
    """
    try:
        return read()
    except NotLabelsError as error:
        if asked:
            raise DataError(f"--label-column {column}: {source} has no labels there: {error}") from None
        log.warning(
            "column %s of %s is not used for labels: %s; --label-column names another", printable(column), source, error
        )
        return [None] * count


def _as_label(value: object) -> Label:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | np.floating | Decimal):
        if value % 1 != 0:  # infinity is not whole either
            raise NotLabelsError(f"it holds {value}, which is not a whole number")
        return int(value)
    if isinstance(value, bytes):
        raise NotLabelsError("it holds bytes that are not text")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, list):
        if len(value) > 1:
            raise NotLabelsError(SEVERAL_LABELS)
        return _as_label(value[0]) if value else None
    raise NotLabelsError(f"it holds values of type {type(value).__name__}")


@dataclass(frozen=True)
class NumberedLabels:
    """Labels as the manifest stores them."""

    labels: dict[str, list[int] | None]
    """Split → label of each of its images, or None for a split without labels."""
    class_names: tuple[str, ...] | None


def number_labels(
    source: object,
    values: Mapping[str, Sequence[Label]],
    class_names: tuple[str, ...] | None = None,
    set_aside: Mapping[str, Collection[int]] | None = None,
) -> NumberedLabels:
    """Number the labels: integers are kept (-1 is a missing label), other labels are numbered in sorted order.

    `values` are the labels of each split, `class_names` the names of integer labels if they are known, `set_aside`
    which images of a split need no label. A split in which another image has no label is taken without labels, with a
    warning. Raises DataError, which names `source`, for integers that cannot be labels.
    """
    whole: dict[str, list[Label]] = {}
    for split, column in values.items():
        ignored = set_aside.get(split, ()) if set_aside is not None else ()
        given = sum(value not in (None, -1) for value in column)
        missing = sum(value in (None, -1) for i, value in enumerate(column) if i not in ignored)
        if given and not missing:
            whole[split] = [None if value == -1 else value for value in column]
        elif given:
            log.warning(
                "split %s is taken without labels: %s of its %s images have none; to keep the labels of the others, "
                "fill them in or take those rows out",
                split,
                f"{missing:,}",
                f"{len(column):,}",
            )
        elif -1 in column:
            log.info("split %s has no labels: all of its %s are -1 or missing", split, f"{len(column):,}")
    distinct = {value for column in whole.values() for value in column if value is not None}
    if all(isinstance(value, int) for value in distinct):
        most = 2**31 if class_names is None else len(class_names)
        for value in distinct:
            if not 0 <= int(value) < most:
                limit = "2147483647" if class_names is None else f"{most - 1}, the last that has a name"
                raise DataError(f"{source} has the label {value}; labels go from 0 to {limit}, -1 is none")
        number = {value: int(value) for value in distinct}
        names = class_names if whole else None
    else:
        texts = sorted(set(map(str, distinct)), key=os.fsencode)
        index = {text: i for i, text in enumerate(texts)}
        number = {value: index[str(value)] for value in distinct}
        names = tuple(map(printable, texts))
    first = min(number.values(), default=0)  # for images that are set aside
    return NumberedLabels(
        {
            split: [first if v is None else number[v] for v in whole[split]] if split in whole else None
            for split in values
        },
        names,
    )


def names_beside(labels: Mapping[str, Sequence[Label]], names: Mapping[str, Sequence[Label]]) -> tuple[str, ...] | None:
    """Name integer labels by the names beside them; return None, with a warning, if the two do not fit each other.

    Both map a split to the values of its images. Images without a label or a name are passed over.
    """
    name_of: dict[int, str] = {}
    for split, column in labels.items():
        for label, name in zip(column, names[split], strict=True):
            if not isinstance(label, int) or label < 0 or name is None:
                continue
            if name_of.setdefault(label, str(name)) != str(name):
                log.warning(
                    "the classes are left without names: label %d is called %r and %r", label, name_of[label], name
                )
                return None
    count = max(name_of, default=-1) + 1
    if len(set(name_of.values())) < len(name_of) or count > 2 * len(name_of):
        log.warning("the classes are left without names: two have the same, or most labels have none")
        return None
    return tuple(printable(name_of.get(label, str(label))) for label in range(count)) or None
