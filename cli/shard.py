"""`coma shard`: images → WebDataset shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.shards.write.options import ShardOptions

if TYPE_CHECKING:
    from coma.shards.write.dry_run import DryRun as Preview

Source = Annotated[
    Path, typer.Argument(help="Folder of images; or ImageNet as downloaded, tars, parquet, a list of paths.")
]
Out = Annotated[
    str | None,
    typer.Argument(
        help="New or empty folder, or a URL (s3://bucket/name).", show_default="NAME-shards in the current folder"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")]


@from_options(ShardOptions)
def shard(options: ShardOptions, source: Source, out: Out = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Pack images into WebDataset shards; damaged ones are listed.

    Images are shuffled once by seed and copied untouched. Damaged ones are set
    aside with their reasons (OUT/quarantine.parquet). The same command resumes
    where it stopped or was killed.
    """
    from coma.cli.summary import summary_as_json, summary_as_lines
    from coma.shards.files import folder_at
    from coma.shards.write.dry_run import dry_run as preview
    from coma.shards.write.run import default_out
    from coma.shards.write.writer import shard as write

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
    """Progress bar of a run, on a terminal."""

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


def _plan_as_json(plan: "Preview") -> dict[str, Any]:
    from dataclasses import asdict

    return {"dry_run": True} | asdict(plan)


def _plan_as_lines(plan: "Preview") -> dict[str, str]:
    from rich.filesize import decimal

    lines = {"found": f"{plan.found:,} images in {plan.source} ({plan.layout})"}
    for split in plan.splits:
        classes = f" of {split.classes:,} classes" if split.classes else ", no labels"
        shards = "1 shard" if split.shards == 1 else f"{split.shards:,} shards"
        lines[split.name] = f"{split.images:,} images{classes}: {shards}, about {decimal(split.bytes)}"
    if plan.refused:
        lines["set aside"] = f"{plan.refused:,} by their names alone, more when they are read"
    if plan.passed_over:
        from collections import Counter

        from coma.shards.sources.listing import counted

        lines["passed over"] = f"{counted(Counter(plan.passed_over))}, no images"
    if plan.spool_bytes:
        lines["meanwhile"] = f"{decimal(plan.spool_bytes)} of disk for the images of parquet rows"
    if plan.free_bytes is not None:
        lines["free"] = decimal(plan.free_bytes)
    if plan.done_shards:
        lines["done"] = f"{plan.done_shards:,} shards stand already"
    lines["where"] = f"{plan.out} (nothing was written)"
    return lines
