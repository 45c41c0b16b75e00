"""`coma inspect`: what is in a data set."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli import console


def inspect(
    data: Annotated[
        Path | None, typer.Argument(help="Sharded data set.", show_default="the one in this folder")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write a contact sheet of 64 random images.", metavar="PNG")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a sharded data set holds: splits, images, sizes, formats."""
    from rich.filesize import decimal

    from coma.shards import describe
    from coma.shards.manifest import find_data

    data = data or find_data(Path())
    found = describe.describe(data)
    if sheet is not None:
        describe.write_contact_sheet(data, sheet, split=found.splits[0].split)
    if json:
        console.print_result(describe.as_json(found), json=True)
        return
    classes = f"{len(found.class_names):,}" if found.class_names else "none: unlabelled"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.set_aside.items())
    aside = sum(found.set_aside.values())
    lines = {"data": str(data), "classes": classes, "set aside": f"{aside:,} ({kinds})" if aside else "none"}
    if sheet is not None:
        lines["sheet"] = str(sheet)
    console.print_result(lines, json=False)
    for split in found.splits:
        console.stdout.print()
        lines = {
            "split": split.split,
            "samples": f"{split.samples:,}",
            "shards": f"{split.shards:,}, {decimal(split.shard_bytes)} in all",
            "formats": ", ".join(f"{count:,} {name}" for name, count in split.formats.items()),
            "width px": f"{split.width}  (min / median / max)",
            "height px": str(split.height),
            "bytes": str(split.image_bytes),
        }
        if split.samples_per_class is not None:
            lines["per class"] = str(split.samples_per_class)
        lines["fingerprint"] = split.fingerprint
        console.print_result(lines, json=False)
