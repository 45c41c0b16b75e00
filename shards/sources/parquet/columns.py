"""Which columns of parquet files hold the images and the labels: by Hugging Face's metadata, type and name."""

from collections.abc import Mapping
from dataclasses import dataclass

from coma.errors import DataError, UsageError
from coma.shards.sources.model import printable
from coma.shards.sources.parquet.rows import Contents
from coma.shards.sources.tables import first_of

_USUAL_IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture", "bytes")
_USUAL_LABELS = ("label", "labels", "class", "target", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Where the images are, and the labels."""

    image: str
    """The column, or member of a struct, that holds the bytes."""
    label: str | None
    class_names: tuple[str, ...] | None
    """What integer labels mean."""

    @property
    def path(self) -> str | None:
        """What stands beside "bytes" in Hugging Face's struct: the image's path."""
        return self.image.removesuffix("bytes") + "path" if self.image.endswith("bytes") else None


def image_columns(contents: Contents) -> list[str]:
    """The columns, or members of structs, that may hold images: by the metadata, else by type and name."""
    kinds = contents.kinds
    tops = [name for name in kinds if kinds[name] == "struct" or "." not in name]
    choices = (
        contents.images,
        [
            name
            for name in tops
            if f"{name}.bytes" in kinds or (name.strip().lower() in _USUAL_IMAGES and kinds[name] == "bytes")
        ],
        [name for name in tops if kinds[name] == "bytes"],
    )
    return next(
        filter(None, ([leaf for name in names if (leaf := _leaf(kinds, name))] for names in choices)), []
    )


def _leaf(kinds: dict[str, str], column: str) -> str | None:
    """Tell where the bytes of a column are: in itself, or in Hugging Face's struct of bytes and path."""
    return next((leaf for leaf in (column, f"{column}.bytes") if kinds.get(leaf) == "bytes"), None)


def choose_columns(
    contents: Mapping[str, Contents], image_column: str | None, label_column: str | None
) -> Columns:
    """Choose the columns of files, whose names go with what they hold; those asked for, or by looking.

    Raises UsageError if what is asked for is not there or several could be meant, DataError if there are no
    images or the files do not agree.
    """
    if image_column is not None:
        found = {leaf for each in contents.values() if (leaf := _leaf(each.kinds, image_column))}
        if not found:
            raise UsageError(
                f"--image-column {image_column}: there is no such column of bytes{_had(contents)}"
            )
    else:
        found = {leaf for each in contents.values() for leaf in image_columns(each)}
        if not found:
            raise DataError(f"no column of images is in the parquet files{_had(contents)}")
    if len(found) > 1:
        raise UsageError(
            f"several columns may hold the images ({', '.join(map(_column, sorted(found)))}); choose one with "
            "--image-column"
        )
    (image,) = found
    holding = [each for each in contents.values() if image in each.kinds]
    if label_column is not None:
        label: str | None = label_column
        if not any(each.kinds.get(label_column) in ("integer", "text") for each in holding):
            raise UsageError(
                f"--label-column {label_column}: there is no such column of integers or text{_had(contents)}"
            )
    else:
        label = next((label for each in holding if (label := _label_column(each)) is not None), None)
    names = {each.classes[label] for each in holding if label is not None and label in each.classes}
    if len(names) > 1:
        raise DataError(f"the parquet files do not agree on the class names of column {label}")
    return Columns(image, label, next(iter(names), None))


def _label_column(contents: Contents) -> str | None:
    usable = [name for name, kind in contents.kinds.items() if kind in ("integer", "text")]
    classes = [name for name in contents.classes if name in usable]
    if len(classes) < 2:
        return classes[0] if classes else first_of(_USUAL_LABELS, usable)
    for name in ("label", "fine_label"):
        if name in classes:
            return name
    raise UsageError(f"several columns hold labels ({', '.join(classes)}); choose one with --label-column")


def _had(contents: Mapping[str, Contents]) -> str:
    """Say what columns there are instead."""
    columns = [
        printable(name) for name in sorted({name for each in contents.values() for name in each.kinds})
    ]
    return f" (there are {', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''})" if columns else ""


def _column(leaf: str) -> str:
    return printable(leaf.removesuffix(".bytes"))
