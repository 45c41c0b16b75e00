"""`coma inspect`: what is in a data set, or what was in one step of a run."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console
from coma.cli.options import Json, command_for
from coma.errors import UsageError, shell_command

if TYPE_CHECKING:
    from rich.table import Table

    from coma.pictures.step import StepContents
    from coma.shards.describe.describe import Description, SplitDescription
    from coma.shards.manifest.pixel_coding import PixelCoding

_WIDTH = 62  # of a line's value, in 80 columns
_ROWS = 10  # of a batch


def inspect(
    data: Annotated[
        str | None,
        typer.Argument(
            help="Data set made by `coma shard`, a folder or a URL; or a run, with --step.",
            metavar="DATA|RUN",
            show_default="the data set in the current folder",
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Step of a run whose images, crops and views are shown.", metavar="N")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Contact sheet to write: 64 images of all classes, or those of a step.",
            metavar="PNG",
            show_default="none; RUN/step-N.png with --step",
        ),
    ] = None,
    show_channels: Annotated[
        str | None,
        typer.Option(
            help="Channels shown as red, green and blue, counted from 1, such as 4,3,2; one alone is shown in grey.",
            metavar="N,N,N",
            show_default="1,2,3",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed for the images of the sheet and of the colours.", metavar="N", min=0, max=2**63 - 1
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Show what a data set holds, or the images of a training step.

    For a data set: images, sizes, formats, classes, and colours (means of up to
    512 random images per split).

    For a step: the very images, crops and views, checked against what the run
    recorded.
    """
    if step is not None:
        _inspect_step(data, step, sheet, show_channels, json=json)
        return
    from coma.shards.describe.contact_sheet import write_contact_sheet
    from coma.shards.describe.describe import as_json, describe
    from coma.shards.images.false_colour import channels_of
    from coma.shards.manifest import chosen_data

    if show_channels is not None and sheet is None:
        raise UsageError(f"--show-channels {show_channels} only matters with a picture: add --sheet PNG")
    folder = chosen_data(data)
    if _is_run(folder):
        from coma.pictures.step import steps_of

        raise UsageError(f"{folder} is a run: add --step N, 1 to {steps_of(folder)}, to see a step's images")
    with console.working("reading the manifest and a sample of the images"):
        description = describe(folder, seed=seed)
        if sheet is not None:
            split, channels = description.splits[0], None
            if show_channels is not None:
                channels = channels_of(split.pixels, show_channels)
            write_contact_sheet(folder, sheet, split=split.split, seed=seed, channels=channels)
    if json:
        console.print_result(as_json(description), json=True)
        return
    lines = _of_data(description)
    if sheet is not None:
        lines["sheet"] = f"{sheet}, of split {description.splits[0].split}"
    console.print_result(lines, json=False)
    for split in description.splits:
        console.stdout.print()
        following = command_for(folder) if split is description.splits[-1] else None
        console.print_result(_of_split(split), json=False, following=None if split.pixels else following)
        if split.pixels is not None:
            _print_pixels(split.pixels, following)


def _inspect_step(run: str | None, step: int, sheet: Path | None, show_channels: str | None, *, json: bool) -> None:
    from coma.shards.files import folder_at

    if run is None:
        raise UsageError("--step is one of a run's: coma inspect RUN --step N")
    if _is_data(folder_at(run)):
        way_out = shell_command("coma", "inspect", "RUN", "--step", step)
        raise UsageError(f"{run} is a data set, and --step is one of a run's: {way_out}")

    from coma.pictures.step import read_step
    from coma.pictures.step_sheet import write_step_sheet
    from coma.runs.names import step_sheet_path

    with console.working(f"drawing step {step:,}"):
        contents = read_step(Path(run), step)
        sheet = step_sheet_path(contents.run, step) if sheet is None else sheet
        on_sheet = write_step_sheet(contents, sheet, show_channels)
    if json:
        console.print_result({**contents.to_json(), "sheet": str(sheet)}, json=True)
    else:
        console.print_result(_of_step(contents), json=False)
        console.stdout.print()
        console.stdout.print(_table(contents))
        console.stdout.print()
        if len(contents.rows) > _ROWS:
            console.stdout.print(f"{len(contents.rows) - _ROWS:,} more: --json has them all")
        for row in [row for row in contents.rows if row.substitute][:_ROWS]:
            line = f"{row.shown.key} stands in for {row.asked.key}: {row.reason}"
            console.stdout.print(_short(line, 80))
        console.stdout.print(f"sheet of {on_sheet:,} of {len(contents.rows):,} images: {sheet}")
    contents.check()


def _is_data(folder: Path) -> bool:
    from coma.shards.files import store_errors_as_oserror
    from coma.shards.manifest import INFO_NAME, MANIFEST_NAME

    with store_errors_as_oserror(folder):
        return (folder / INFO_NAME).is_file() or (folder / MANIFEST_NAME).is_file()


def _is_run(folder: Path) -> bool:
    from coma.runs.names import CONFIG_NAME
    from coma.shards.files import is_remote

    return not is_remote(folder) and not _is_data(folder) and (folder / CONFIG_NAME).is_file()


def _of_step(contents: "StepContents") -> dict[str, str]:
    recorded = {
        True: "as in metrics.jsonl",
        False: f"but {contents.recorded_digest} in metrics.jsonl",
        None: "(metrics.jsonl has no record of this step)",
    }[contents.matches]
    replaced = f", {contents.substituted:,} of them substituted" if contents.substituted else ""
    return {
        "run": str(contents.run),
        "step": f"{contents.step:,} of {contents.steps:,}, epoch {contents.epochs:.4g}",
        **{f"data {number}" if number > 1 else "data": each for number, each in enumerate(contents.data, 1)},
        "images": f"{len(contents.rows):,}{replaced}",
        "crops": f"{contents.image_size} px",
        "views": f"{' + '.join(map(str, contents.view_sizes))} of {contents.units} mask units",
        "digest": f"{contents.batch_digest} {recorded}",
    }


def _table(contents: "StepContents") -> "Table":
    """The first rows of a batch, within 80 columns."""
    from pathlib import PurePosixPath

    from rich.table import Table
    from rich.text import Text

    from coma.shards.text import visible

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("sample", justify="right", no_wrap=True)
    table.add_column("key", max_width=12, no_wrap=True)
    mixture = len(contents.manifest.parts) > 1
    table.add_column("data set" if mixture else "class", max_width=14, no_wrap=True)
    table.add_column("crop px", no_wrap=True)
    table.add_column("flip", no_wrap=True)
    table.add_column("source", no_wrap=True, max_width=24)
    for row in contents.rows[:_ROWS]:
        crop, shown = row.crop, row.shown
        cells = (
            str(shown.sample),
            shown.key,
            (shown.data_set if mixture else shown.class_text) or "-",
            f"{crop.width}x{crop.height} at {crop.x},{crop.y}",
            " ".join([*(["yes"] if row.flipped else []), *([f"{row.turned}°"] if row.turned else [])]) or "-",
            PurePosixPath(shown.source).name,
        )
        table.add_row(*map(Text, map(visible, cells)))
    return table


def _of_data(description: "Description") -> dict[str, str]:
    classes = description.classes
    masks = description.mask_classes
    aside, changed = sum(description.set_aside.values()), sum(description.converted.values())
    return {
        "data": str(description.data),
        "classes": f"{len(classes):,}: {_cut(classes)}" if classes else "none: unlabelled",
        **({"mask classes": f"{len(masks):,}: {_cut(masks)}"} if masks else {}),
        "set aside": f"{aside:,} ({console.counts_in_words(description.set_aside)})" if aside else "none",
        "converted": f"{changed:,} ({console.counts_in_words(description.converted)})" if changed else "none",
    }


def _of_split(split: "SplitDescription") -> dict[str, str]:
    from rich.filesize import decimal

    lines = {
        "split": split.split,
        "images": f"{split.samples:,}",
        "shards": f"{split.shards:,}, {decimal(split.shard_bytes)} in all",
        "formats": console.counts_in_words(split.formats),
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
    if (masks := split.masks) is not None:
        of = "all masks" if masks.images == split.samples else f"{masks.images:,} random masks"
        lines["masks"] = f"{_cut(f'{name} {share:.1%}' for name, share in masks.classes.items() if share)}"
        lines["no class"] = f"{masks.ignored:.1%} of the pixels  (of {of})"
    if split.pixels is not None:
        lines["pixels"] = split.pixels.identity
    lines["fingerprint"] = split.fingerprint
    return lines


def _print_pixels(pixels: "PixelCoding", following: str | None) -> None:
    """Print the statistics of each channel, a line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    names = ("channel", "mean", "std", "least", "median", "greatest")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for channel in range(pixels.channels):
        least, median, greatest = pixels.least[channel], pixels.quantile(channel, 50), pixels.greatest[channel]
        values = (pixels.mean[channel], pixels.std[channel], least, median, greatest)
        table.add_row(str(channel + 1), *(f"{value:.6g}" for value in values))
    console.stdout.print()
    console.stdout.print(table)
    if following is not None:
        console.print_result({}, json=False, following=following)


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
