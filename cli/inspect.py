"""`coma inspect`: what is in a data set."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console

if TYPE_CHECKING:
    from coma.shards.describe import Description, SplitDescription

_WIDTH = 62  # of a line's value, in 80 columns


def inspect(
    data: Annotated[
        str | None,
        typer.Argument(help="Sharded data set: a folder or URL.", show_default="the one in this folder"),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Also write a contact sheet: 64 images, of all classes.", metavar="PNG"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random images.", metavar="N", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a sharded data set holds: images, sizes, formats, classes, colours.

    Mean and standard deviation are those of up to 512 random images a split.
    """
    from coma.shards import describe
    from coma.shards.files import folder_at
    from coma.shards.manifest import find_data
    from coma.shards.sheet import write_contact_sheet

    folder = find_data(Path()) if data is None else folder_at(data)
    found = describe.describe(folder, seed=seed)
    if sheet is not None:
        write_contact_sheet(folder, sheet, split=found.splits[0].split, seed=seed)
    if json:
        console.print_result(describe.as_json(found), json=True)
        return
    lines = _whole(found)
    if sheet is not None:
        lines["sheet"] = f"{sheet}, of split {found.splits[0].split}"
    console.print_result(lines, json=False)
    for split in found.splits:
        console.stdout.print()
        console.print_result(_of_split(split), json=False)


def _whole(found: "Description") -> dict[str, str]:
    names = found.class_names
    aside, changed = sum(found.set_aside.values()), sum(found.converted.values())
    return {
        "data": str(found.data),
        "classes": f"{len(names):,}: {_cut(names)}" if names else "none: unlabelled",
        "set aside": f"{aside:,} ({_kinds(found.set_aside)})" if aside else "none",
        "converted": f"{changed:,} ({_kinds(found.converted)})" if changed else "none",
    }


def _of_split(split: "SplitDescription") -> dict[str, str]:
    from rich.filesize import decimal

    lines = {
        "split": split.split,
        "images": f"{split.samples:,}",
        "shards": f"{split.shards:,}, {decimal(split.shard_bytes)} in all",
        "formats": _kinds(split.formats),
        "width px": f"{split.width}  (min / median / max)",
        "height px": str(split.height),
        "image bytes": str(split.image_bytes),
    }
    if (classes := split.classes) is not None:
        spread = classes.per_class
        lines["per class"] = str(spread)
        if spread.min < spread.max:
            lines["fewest"] = _short(classes.smallest, _WIDTH)
            lines["most"] = _short(classes.largest, _WIDTH)
        lines["effective"] = f"{classes.effective:,.1f} classes of equal size would be as varied"
    if (channels := split.channels) is not None:
        of = "all images" if channels.images == split.samples else f"{channels.images:,} random images"
        lines["mean RGB"] = f"{_rgb(channels.mean)}  (of {of})"
        lines["std RGB"] = _rgb(channels.std)
    lines["fingerprint"] = split.fingerprint
    return lines


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _rgb(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _cut(names: Iterable[str]) -> str:
    """As many names as fit on a line."""
    shown = ""
    for name in names:
        longer = f"{shown}, {name}" if shown else _short(name, _WIDTH - 5)
        if len(longer) > _WIDTH - 5:
            return f"{shown}, ..."
        shown = longer
    return shown


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
