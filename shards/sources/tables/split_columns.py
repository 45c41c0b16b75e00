"""Splits that the columns of a table say."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from coma.errors import DataError
from coma.shards.sources.listing import printable
from coma.shards.sources.splits import SPLIT_OF_WORD
from coma.shards.sources.tables.label_columns import column_key, find_columns

log = logging.getLogger(__name__)

_CERTAIN = ("split", "splits", "partition", "datasplit", "splitname")
_POSSIBLE = ("subset", "set", "settype", "dataset", "phase", "usage", "fold")
_FLAGS = {  # name of a column → the split of rows in which it is true
    **dict.fromkeys(("istest", "istesting", "istestimage"), "test"),
    **dict.fromkeys(("isval", "isvalid", "isvalidation", "isdev"), "val"),
    **dict.fromkeys(("istrain", "istraining", "istrainimage", "istrainingimage"), "train"),
}
_TRUE_OR_FALSE = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_KINDS = ("text", "integer", "number", "bool")


def split_columns(source: str, kinds: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns that may say the splits, the likeliest first; warn of those that hold something else."""
    columns = find_columns((*_CERTAIN, *_POSSIBLE, *_FLAGS), kinds)
    for column in columns:
        if kinds[column] not in _KINDS and column_key(column) not in _POSSIBLE:
            log.warning("column %s of %s is not used for splits: it holds %s", printable(column), source, kinds[column])
    return tuple(column for column in columns if kinds[column] in _KINDS)


def splits_of_rows(source: str, columns: Mapping[str, Sequence[object]]) -> list[str] | None:
    """Return the split of each row by the columns that `split_columns` found, None if they say none.

    A column is used if all that it holds are names of splits, or truth values in one that is called `is_test` or the
    like. Says which one is used. Raises DataError if a column says the splits of some rows only.
    """
    flags: dict[str, list[bool]] = {}
    for column, values in columns.items():
        texts = ["" if value is None else str(value).strip() for value in values]
        true_split = _FLAGS.get(column_key(column))
        meaning: dict[str, bool | None] | dict[str, str | None]
        if true_split is not None:
            meaning = {text: _TRUE_OR_FALSE.get(text.lower()) for text in set(texts)}
        else:
            meaning = {text: _split_of(text) for text in set(texts)}
        unknown = sorted(text for text, known in meaning.items() if known is None)
        if not unknown and true_split is not None:
            flags.setdefault(true_split, [bool(meaning[text]) for text in texts])
        elif not unknown:
            log.info("splits are those of column %s", printable(column))
            return [str(meaning[text]) for text in texts]
        elif column_key(column) in _CERTAIN or len(unknown) < len(meaning):
            raise DataError(
                f"{source} has unknown splits in column {printable(column)} ({_quoted(unknown)}); write train, val or "
                "test in each row, or call the column otherwise if it means something else"
            )
        else:
            log.info("column %s is not used for splits: it holds %s", printable(column), _quoted(unknown))
    return _splits_of_flags(flags) if flags else None


def _splits_of_flags(flags: Mapping[str, Sequence[bool]]) -> list[str]:
    """Return the split whose flag is true; if none is, test if there is a flag for train, else train."""
    others = "test" if "train" in flags else "train"
    log.info("splits are those of the columns of truth values: %s if true, otherwise %s", " or ".join(flags), others)
    order = [split for split in ("test", "val", "train") if split in flags]
    rows = zip(*(flags[split] for split in order), strict=True)
    return [next((split for split, true in zip(order, row, strict=True) if true), others) for row in rows]


def warn_of_held_out(name: str, said: str, splits: Iterable[str]) -> None:
    """Warn if rows are training images by a column in a file `name` that is a split `said` by its name."""
    training = sum(split == "train" for split in splits)
    if said != "train" and training:
        log.warning(
            "%s has %s rows in split train by its column, though its name says %s; the column decides",
            printable(name),
            f"{training:,}",
            said,
        )


def _split_of(text: str) -> str | None:
    return SPLIT_OF_WORD.get(text.lower())


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(repr(text[:40]) for text in texts[:5]) + (", ..." if len(texts) > 5 else "")
