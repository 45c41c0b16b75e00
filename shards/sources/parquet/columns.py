"""Choice of the columns of parquet files that hold images and labels, by Hugging Face's metadata, type and name."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from coma.errors import DataError, UsageError
from coma.shards.sources.listing import printable
from coma.shards.sources.parquet.read import Contents
from coma.shards.sources.tables.label_columns import LabelColumns, choose_label_columns, is_usual
from coma.shards.sources.tables.split_columns import split_columns

_USUAL_IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture", "bytes")


@dataclass(frozen=True)
class Columns:
    """The columns that hold the images and the labels."""

    image: str
    """Column, or member of a struct, that holds the images' bytes."""
    labels: LabelColumns
    class_names: tuple[str, ...] | None
    """Names of integer labels."""
    splits: tuple[str, ...] = ()
    """Columns that may say the splits."""

    @property
    def path(self) -> str | None:
        """Member "path" beside "bytes" in Hugging Face's struct of an image."""
        return self.image.removesuffix("bytes") + "path" if self.image.endswith("bytes") else None


def image_columns(contents: Contents) -> list[str]:
    """Return the columns or struct members that may hold images, by the metadata, else by type and name."""
    kinds = contents.kinds
    tops = [name for name in kinds if kinds[name] == "struct" or "." not in name]
    choices = (
        [name for name in contents.images if not is_usual(name)],  # else it is a mask beside the image
        contents.images,
        [
            name
            for name in tops
            if f"{name}.bytes" in kinds or (name.strip().lower() in _USUAL_IMAGES and kinds[name] == "bytes")
        ],
        [name for name in tops if kinds[name] == "bytes" and not is_usual(name)],
        [name for name in tops if kinds[name] == "bytes"],
    )
    leaves = ([leaf for name in names if (leaf := _bytes_leaf(kinds, name))] for names in choices)
    return next(filter(None, leaves), [])


def _bytes_leaf(kinds: dict[str, str], column: str) -> str | None:
    """Return the column if it holds bytes, or its member "bytes" if it is Hugging Face's struct of an image."""
    return next((leaf for leaf in (column, f"{column}.bytes") if kinds.get(leaf) == "bytes"), None)


def choose_columns(contents: Mapping[str, Contents], image_column: str | None, label_column: str | None) -> Columns:
    """Choose the columns of files, given as {file: contents}: those asked for, else by their names and types.

    Raises UsageError if a column asked for is not there or there are several candidates, DataError if there are no
    images or the files do not agree.
    """
    if image_column is not None:
        candidates = {leaf for each in contents.values() if (leaf := _bytes_leaf(each.kinds, image_column))}
        if not candidates:
            raise UsageError(f"--image-column {image_column}: no such column of bytes{_all_columns(contents)}")
    else:
        candidates = {leaf for each in contents.values() for leaf in image_columns(each)}
        if not candidates:
            raise DataError(f"no column of images is in the parquet files{_all_columns(contents)}")
    if len(candidates) > 1:
        listed = ", ".join(printable(leaf.removesuffix(".bytes")) for leaf in sorted(candidates))
        raise UsageError(f"several columns may hold the images ({listed}); choose one with --image-column")
    (image,) = candidates
    holding = {file: each for file, each in contents.items() if image in each.kinds}
    source, kinds = printable(next(iter(holding))), _kinds(holding, image)
    splits = split_columns(source, kinds)
    classes = dict.fromkeys(name for each in holding.values() for name in each.classes if name not in splits)
    labels = choose_label_columns(source, kinds, label_column, tuple(classes))
    label = labels.label or ""
    names = {each.classes[label] for each in holding.values() if label in each.classes}
    if len(names) > 1:
        raise DataError(f"the parquet files do not agree on the class names of column {printable(label)}")
    return Columns(image, labels, next(iter(names), None), splits)


def _kinds(contents: Mapping[str, Contents], image: str) -> dict[str, str]:
    """Return what the columns beside the images hold in most files, as one may be null in some."""
    top = image.removesuffix(".bytes")
    kinds: dict[str, Counter[str]] = {}
    for each in contents.values():
        for name, kind in each.kinds.items():
            if not f"{name}.".startswith(f"{top}."):
                kinds.setdefault(name, Counter())[kind] += kind != "null"
    return {name: counts.most_common(1)[0][0] for name, counts in kinds.items()}


def _all_columns(contents: Mapping[str, Contents]) -> str:
    """List the columns that there are, for a message."""
    columns = [printable(name) for name in sorted({name for each in contents.values() for name in each.kinds})]
    return f" (there are {', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''})" if columns else ""
