"""`coma shard`: images → WebDataset shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coma.cli import console
from coma.errors import UsageError

if TYPE_CHECKING:
    from coma.shards.write.dry_run import DryRun

_SOURCE, _SHARDS, _IMAGES, _RUNNING = "Source", "Shards", "Images", "Running"


def shard(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of images; or ImageNet as downloaded, tars, parquet, a list of paths."),
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            help="New or empty folder, or a URL (s3://bucket/name).",
            show_default="NAME-shards, in this folder",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="folder, flat (no labels), imagenet, kaggle, tar, webdataset, parquet or list.",
            metavar="NAME",
            show_default="looks",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            help="Column of images, or of paths.",
            metavar="NAME",
            show_default="looks",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of labels.", metavar="NAME", show_default="looks", rich_help_panel=_SOURCE),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that a list's paths lie in.",
            metavar="DIR",
            show_default="the list's",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle.", metavar="N", rich_help_panel=_SHARDS)] = 0,
    shard_bytes: Annotated[
        str | None,
        typer.Option(
            help="Size of a shard: 256MiB, 1GB, plain bytes.",
            metavar="SIZE",
            show_default="256MiB, or 16 shards",
            rich_help_panel=_SHARDS,
        ),
    ] = None,
    val_fraction: Annotated[
        float,
        typer.Option(
            help="Hold this part out as split val, if SOURCE has none.", metavar="X", rich_help_panel=_SHARDS
        ),
    ] = 0.0,
    dedupe: Annotated[
        bool,
        typer.Option(
            "--dedupe", help="Set exact duplicates aside (reads all twice).", rich_help_panel=_SHARDS
        ),
    ] = False,
    resize: Annotated[
        int | None,
        typer.Option(
            help="Re-encode as JPEG, shorter side at most PX pixels.",
            metavar="PX",
            show_default="bytes as they are",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            help="JPEG quality, 1 to 100, with --resize.",
            metavar="Q",
            show_default="90",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    check: Annotated[
        str,
        typer.Option(
            help="full decodes every image; header is quicker.", metavar="HOW", rich_help_panel=_IMAGES
        ),
    ] = "full",
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Set larger images aside as bombs.",
            metavar="N",
            show_default="67108864",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes.", metavar="N", show_default="one a core", rich_help_panel=_RUNNING),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="processes, here; or ray, on its cluster.", metavar="NAME", rich_help_panel=_RUNNING
        ),
    ] = "processes",
    part: Annotated[
        str | None,
        typer.Option(
            help="Write this part of the shards, for array jobs; the last one merges, but not in a store.",
            metavar="I/N",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written.", rich_help_panel=_RUNNING)
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel=_RUNNING)
    ] = False,
) -> None:
    """Pack images into WebDataset shards, every one accounted for.

    They are shuffled once and for all by seed and copied untouched; damaged ones
    are set aside with their reasons (OUT/quarantine.parquet). Stopped or killed,
    the same command goes on where it was.
    """
    from coma.cli.accounts import summary_as_json, summary_as_lines
    from coma.shards.byte_sizes import parse_bytes
    from coma.shards.files import folder_at
    from coma.shards.write.dry_run import dry_run as preview
    from coma.shards.write.options import ShardOptions, parse_part
    from coma.shards.write.run import default_out
    from coma.shards.write.writer import shard as write

    if quality is not None and resize is None:
        raise UsageError(f"--quality {quality} only matters when images are re-encoded; add --resize PX")
    given: dict[str, Any] = {"quality": quality, "max_pixels": max_pixels}
    options = ShardOptions(
        seed=seed,
        shard_bytes=None if shard_bytes is None else parse_bytes(shard_bytes, "--shard-bytes"),
        val_fraction=val_fraction,
        resize_px=resize,
        check=check,
        dedupe=dedupe,
        workers=workers,
        engine=engine,
        part=None if part is None else parse_part(part),
        layout=layout,
        image_column=image_column,
        label_column=label_column,
        root=root,
        **{name: value for name, value in given.items() if value is not None},
    )
    place = default_out(source) if out is None else folder_at(out)
    result: dict[str, Any]
    with _Bar() as bar:
        if dry_run:
            plan = preview(source, place, options, bar.show)
            result = _plan_as_json(plan) if json else _plan_as_lines(plan)
        else:
            summary = write(source, place, options, bar.show)
            result = summary_as_json(summary) if json else summary_as_lines(summary)
    console.print_result(result, json=json)


class _Bar:
    """The progress of a run, on a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        self.progress = console.progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(compact=True),
        )
        self.progress.live.transient = True  # the summary says it all
        self.task = self.progress.add_task("listing", total=None, done="")
        self.stage = "listing"
        self.first_images = 0

    def __enter__(self) -> "_Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, now: Any) -> None:
        """Draw a ShardProgress."""
        from rich.filesize import decimal

        if not now.total_images:
            self.progress.update(self.task, done=f"{now.images:,} images")
            return
        if self.stage != now.stage:
            self.stage = now.stage
            self.first_images = now.images  # an earlier run's do not count for the rate
            self.progress.reset(self.task, description=now.stage, total=now.total_source_bytes)
        elapsed_s = self.progress.tasks[0].elapsed or 0
        rate = f"{(now.images - self.first_images) / elapsed_s:,.0f}" if elapsed_s > 0.5 else "-"
        aside = f", {now.set_aside:,} set aside" if now.set_aside else ""
        self.progress.update(
            self.task,
            completed=now.source_bytes,
            done=f"{now.images:,}/{now.total_images:,}{aside}, {rate} img/s, {decimal(now.source_bytes)}",
        )


def _plan_as_json(plan: "DryRun") -> dict[str, Any]:
    from dataclasses import asdict

    return {"dry_run": True} | asdict(plan)


def _plan_as_lines(plan: "DryRun") -> dict[str, str]:
    from rich.filesize import decimal

    lines = {"found": f"{plan.found:,} images in {plan.source} ({plan.layout})"}
    for split in plan.splits:
        classes = f" of {split.classes:,} classes" if split.classes else ", no labels"
        shards = "1 shard" if split.shards == 1 else f"{split.shards:,} shards"
        lines[split.name] = f"{split.images:,} images{classes}: {shards}, about {decimal(split.bytes)}"
    if plan.refused:
        lines["set aside"] = f"{plan.refused:,} by their names alone, more when they are read"
    if plan.spool_bytes:
        lines["meanwhile"] = f"{decimal(plan.spool_bytes)} of disk for the images of parquet rows"
    if plan.free_bytes is not None:
        lines["free"] = decimal(plan.free_bytes)
    if plan.done_shards:
        lines["done"] = f"{plan.done_shards:,} shards stand already"
    lines["where"] = f"{plan.out} (nothing was written)"
    return lines
