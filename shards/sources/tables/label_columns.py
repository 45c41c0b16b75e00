"""Choice of the columns of a table that hold the labels and the names of the classes."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coma.errors import UsageError
from coma.shards.sources.listing import printable

log = logging.getLogger(__name__)

# Usual names in lower case without separators, the first of them first.
_LABELS = (
    *("label", "labels", "finelabel", "labelid", "labelidx", "labelindex", "labelencoded"),
    *("classid", "classidx", "classindex", "classlabel", "class", "classes", "target", "targets"),
    *("categoryid", "category", "categories", "cls", "y", "labelname", "labeltext", "classname", "categoryname"),
    *("species", "breed", "diagnosis", "coarselabel"),
)
_NAMES = (
    *("labelname", "labeltext", "classname", "categoryname", "finelabelname", "classlabel"),
    *("class", "category", "label", "species", "breed"),
)
_SCALARS = ("integer", "number", "bool", "text")
_LISTS = tuple(f"list of {kind}" for kind in _SCALARS)
KINDS = (*_SCALARS, *_LISTS, "bytes")
"""Kinds of columns that may hold labels, the likeliest first."""


@dataclass(frozen=True)
class LabelColumns:
    """The columns that hold labels, None for those that there are not."""

    label: str | None
    names: str | None = None
    """Names of the classes beside labels that are integers."""


def find_columns(usual_names: Sequence[str], columns: Iterable[str]) -> list[str]:
    """Return the columns that have usual names, in the order of these, ignoring case and separators.

    A member of a struct ("json.label") has its own name, or the struct's with it. It goes after columns of their own.
    """
    ranks = {name: rank for rank, name in enumerate(usual_names)}
    ranked = []
    for column in columns:
        keys = [column_key(column), *([column_key(column.rpartition(".")[2])] if "." in column else [])]
        if rank := min((ranks[key] + 1 for key in keys if key in ranks), default=0):
            ranked.append((("." in column), rank, column))
    return [column for _, _, column in sorted(ranked, key=lambda each: each[:2])]


def column_key(column: str) -> str:
    """Return a column's name in lower case without separators."""
    return re.sub(r"[\W_]+", "", column.lower())


def is_usual(column: str) -> bool:
    """Whether a column has a usual name of one with labels."""
    return bool(find_columns(_LABELS, [column]))


def choose_label_columns(
    source: str, kinds: Mapping[str, str], asked: str | None, classes: Sequence[str] = ()
) -> LabelColumns:
    """Choose the columns of labels and of class names: those asked for, else those with names of classes or usual ones.

    Args:
        source: name of the table in messages.
        kinds: column, or member of a struct, → one of KINDS, or "struct", or what else it holds.
        asked: the column that `--label-column` names.
        classes: columns whose class names the file's metadata have.

    Raises UsageError if a column asked for cannot hold labels, or several may and none has a usual name. Says which
    column is taken if there are others, and which ones with usual names are not used.
    """
    if asked is not None:
        asked = _asked(source, kinds, asked)
        return LabelColumns(asked, _names(kinds, asked))
    usual = [column for column in find_columns(_LABELS, kinds) if not _is_coordinate(column, kinds)]
    usable = sorted((column for column in usual if kinds[column] in KINDS), key=lambda column: _order(kinds[column]))
    with_classes = [column for column in classes if kinds.get(column) in KINDS]
    first = find_columns(_LABELS, with_classes)
    if len(with_classes) > 1 and not first:
        raise UsageError(f"several columns hold labels ({_listed(with_classes)}); choose one with --label-column")
    label: str | None = next(iter([*first, *with_classes, *usable]), None)
    names = None if label is None else _names(kinds, label)
    _report(source, kinds, LabelColumns(label, names), list(dict.fromkeys([*first, *with_classes, *usual])))
    return LabelColumns(label, names)


def _order(kind: str) -> int:
    """Return 0 for columns of one value a row, 1 for those that may hold several, 2 for bytes."""
    return 0 if kind in _SCALARS else 1 if kind in _LISTS else 2


def _is_coordinate(column: str, kinds: Mapping[str, str]) -> bool:
    """Whether a column y stands beside a column x."""
    return column.lower() == "y" and any(other.lower() == "x" for other in kinds)


def _names(kinds: Mapping[str, str], label: str) -> str | None:
    """Return the column of class names beside a column of labels."""
    texts = [column for column, kind in kinds.items() if kind in ("text", "list of text") and column != label]
    struct = label.rpartition(".")[0]
    inside = [column for column in texts if struct and column.startswith(f"{struct}.")]
    return next(iter([*find_columns((*_NAMES, "name", "text"), inside), *find_columns(_NAMES, texts)]), None)


def _asked(source: str, kinds: Mapping[str, str], asked: str) -> str:
    if kinds.get(asked) == "struct":
        members = [column for column, kind in kinds.items() if column.startswith(f"{asked}.") and kind in KINDS]
        scalars = [column for column in members if kinds[column] in ("integer", "number", "bool")]
        usual = find_columns((*_LABELS, "id", "index"), scalars or members)
        if usual or len(members) == 1:
            return (usual or members)[0]
        raise UsageError(f"--label-column {asked}: it holds several values; name one of {_listed(members)}")
    if kinds.get(asked) in KINDS:
        return asked
    if asked in kinds:
        raise UsageError(f"--label-column {asked}: {source} has no labels there but {kinds[asked]}")
    raise UsageError(f"--label-column {asked}: {source} has no such column (there are {_listed(list(kinds))})")


def _report(source: str, kinds: Mapping[str, str], chosen: LabelColumns, candidates: Sequence[str]) -> None:
    others = [column for column in candidates if column not in (chosen.label, chosen.names)]
    if chosen.label is not None and (usable := [column for column in others if kinds[column] in KINDS]):
        log.info(
            "labels are taken from column %s; --label-column takes them from another (%s)",
            printable(chosen.label),
            _listed(usable),
        )
    for column in others:
        if kinds[column] in KINDS or (
            kinds[column] == "struct" and any(c.startswith(f"{column}.") for c in candidates)
        ):
            continue
        level = logging.WARNING if chosen.label is None else logging.INFO
        log.log(
            level,
            "column %s of %s is not used for labels: it holds %s; --label-column names another",
            printable(column),
            source,
            kinds[column],
        )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(printable, columns[:8])) + (", ..." if len(columns) > 8 else "")
