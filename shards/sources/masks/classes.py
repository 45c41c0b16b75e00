"""Classes of masks: from the command line, a file of names, or the values that the masks hold."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from coma.errors import UsageError
from coma.shards.images.formats import BadImageError
from coma.shards.images.masks import COLOURS_WAY_OUT, mask_values
from coma.shards.manifest.mask_coding import IGNORED, MaskCoding, check_count, grey_coding
from coma.shards.sources.listing import ListingBuilder, PassedOver, printable
from coma.shards.sources.masks.options import MaskOptions
from coma.shards.sources.reader import SourceReader

log = logging.getLogger(__name__)

CLASS_FILES = frozenset(
    ("classes.txt", "class_names.txt", "labels.txt", "label_names.txt", "label_colors.txt", "label_colours.txt")
)
"""Names of files that are read for the classes if they lie beside the masks."""
_MOST_FILE_BYTES = 1 << 20
_LINE = re.compile(r"(?:(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+|(\d+)[\s,;:=]+)?(\S.*?)\s*", re.ASCII)
_PROBED = 16  # masks that are looked at before a run
_MOST_VALUE = 0xFFFE


def coding_of(
    root: Path, masks: ListingBuilder, passed_over: PassedOver, options: MaskOptions, known: Sequence[str] | None = None
) -> MaskCoding:
    """Return the coding of masks, whose classes stay open if nothing but the masks says them.

    Args:
        root: the source.
        masks: the masks' listing.
        passed_over: the files of the source that are no images.
        options: what the command line says; it goes before all else.
        known: names of the classes in this layout.

    Raises:
        UsageError: the classes cannot be told, or are too many.
    """
    if options.classes is not None and options.classes.isdecimal():
        return grey_coding(int(options.classes[:9]), options.ignored_or(IGNORED))
    if options.classes is not None:
        return _coding_of_file(Path(options.classes), options, "--mask-classes ")
    if known is not None:
        return grey_coding(known, options.ignored_or(IGNORED))
    files = _files_beside(masks, passed_over)
    if len(files) > 1:
        both = " and ".join(map(printable, files[:2]))
        raise UsageError(f"{both} may name the classes of the masks: say which, --mask-classes FILE")
    if files:
        coding = _coding_of_file(root / files[0], options, "")
        count = len(coding.classes or ())
        log.info("classes of the masks: %d from %s; --mask-classes says otherwise", count, printable(files[0]))
        return coding
    return grey_coding(None, options.ignored_or(IGNORED))


def _files_beside(masks: ListingBuilder, passed_over: PassedOver) -> list[str]:
    """Return the paths of files of class names in the folders of the masks or above."""
    above = {""}
    for folder in {path.rpartition("/")[0] for path in masks.paths}:
        parts = folder.split("/")
        above |= {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    files = (path for path in passed_over.paths if path.rpartition("/")[2].lower() in CLASS_FILES)
    return sorted(path for path in files if path.rpartition("/")[0] in above)


def _coding_of_file(path: Path, options: MaskOptions, flag: str) -> MaskCoding:
    """Read a class a line: `name`, `value name` or `red green blue name`. Raises UsageError."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_FILE_BYTES).decode("utf-8-sig", "replace")
    except OSError as error:
        hint = "; give a number of classes or a file of their names" if flag else ""
        raise UsageError(f"{flag}{path} cannot be read: {error.strerror}{hint}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ")]
    matches = [match for line in lines if (match := _LINE.fullmatch(line)) is not None]
    kinds = {3 if match[1] else 1 if match[4] else 0 for match in matches}
    if len(kinds) != 1 or len(matches) != len(lines):
        raise UsageError(
            f"{flag}{path}: {'no class' if not lines else 'lines of several kinds'}; write one class a line, all as "
            "`road`, as `7 road` with its value, or as `128 64 128 road` with its colour"
        )
    names = [printable(match[5]) for match in matches]
    check_count(len(names))
    (kind,) = kinds
    if kind == 0:
        return grey_coding(names, options.ignored_or(IGNORED))
    values = [_value(match, kind) for match in matches]
    most = 0xFFFFFF if kind == 3 else _MOST_VALUE
    bad = next((i for i, value in enumerate(values) if value in values[:i] or not 0 <= value <= most), None)
    if bad is not None:
        raise UsageError(f"{flag}{path}: the line `{lines[bad]}` has a value that is impossible or not the only one")
    default = None if kind == 3 or IGNORED in values else IGNORED
    ignored = options.ignored_or(default)
    if ignored in values:
        raise UsageError(f"--mask-ignore {ignored}: {path} has a class of this value, {names[values.index(ignored)]}")
    return MaskCoding(tuple(names), tuple(values), ignored, in_colour=kind == 3)


def _value(match: re.Match[str], kind: int) -> int:
    if kind == 1:
        return int(match[4])
    red, green, blue = (int(match[at]) for at in (1, 2, 3))
    return red << 16 | green << 8 | blue if max(red, green, blue) < 256 else -1


def unusable(root: Path, masks: ListingBuilder, coding: MaskCoding, options: MaskOptions) -> str | None:
    """Look at some masks; return why none of them can be one, or None.

    Raises:
        UsageError: they hold 0 and 255 alone, which may mean two things.
    """
    reasons: list[str | None] = []
    values: set[int] = set()
    reader = SourceReader(root)
    images = masks.split("", range(len(masks)))
    try:
        for at in sorted({i * len(images) // _PROBED for i in range(_PROBED)}):
            image = images.image(at)
            try:
                held, in_colour = mask_values(reader.read(image), printable(image.path))
            except (BadImageError, OSError) as error:
                reasons.append(str(error))
                continue
            colours = f"mask in colours: {printable(image.path)} has three channels; {COLOURS_WAY_OUT}"
            reasons.append(colours if in_colour and not coding.in_colour else None)
            values.update(() if in_colour else held)
    finally:
        reader.close()
    if reasons and None not in reasons:
        return reasons[0]
    undecided = coding.classes is None and options.ignored is None
    if undecided and IGNORED in values and values <= {0, IGNORED}:
        raise UsageError(
            f"the masks, such as {printable(images.paths[0])}, hold 0 and 255 alone: if 255 is a class, write the "
            "lines `0 background` and `255 object` to a file and give it as --mask-classes FILE; if it is none, give "
            "--mask-ignore 255; --masks none takes images alone"
        )
    return None
