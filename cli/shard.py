"""`coma shard`: images → WebDataset shards."""

from typing import TYPE_CHECKING, Any

from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.shards.write.options import ShardCommand

if TYPE_CHECKING:
    from coma.shards.write.dry_run import DryRun


@from_options(ShardCommand)
def shard(command: ShardCommand, json: Json = False) -> None:
    """Pack images into WebDataset shards; damaged ones are listed.

    Images are shuffled once by seed and copied untouched. Damaged ones are set
    aside with their reasons (OUT/quarantine.parquet). The same command resumes
    where it stopped or was killed.
    """
    from coma.cli.summary import summary_as_json, summary_as_lines
    from coma.shards.write.command import run_command
    from coma.shards.write.dry_run import DryRun

    with _Bar() as bar:
        done = run_command(command, bar.show)
    if isinstance(done, DryRun):
        console.print_result(_plan_as_json(done) if json else _plan_as_lines(done), json=json)
    else:
        console.print_result(summary_as_json(done) if json else summary_as_lines(done), json=json)


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


def _plan_as_json(plan: "DryRun") -> dict[str, Any]:
    from dataclasses import asdict

    described = {"dry_run": True} | asdict(plan)
    if plan.tiled is None:
        del described["tiled"]
    return described


def _plan_as_lines(plan: "DryRun") -> dict[str, str]:
    from rich.filesize import decimal

    what = f"{plan.found:,} images" if plan.tiled is None else plan.tiled.in_words(plan.found)
    lines = {"found": f"{what} in {plan.source} ({plan.layout})"}
    for split in plan.splits:
        classes = f" of {split.classes:,} classes" if split.classes else ", no labels"
        shards = "1 shard" if split.shards == 1 else f"{split.shards:,} shards"
        samples = "images" if plan.tiled is None else "tiles"
        lines[split.name] = f"{split.images:,} {samples}{classes}: {shards}, about {decimal(split.bytes)}"
    if plan.refused:
        by = "their names alone" if plan.tiled is None else "their names and headers"
        lines["set aside"] = f"{plan.refused:,} by {by}, more when they are read"
    if plan.passed_over:
        from collections import Counter

        from coma.shards.sources.listing import counted

        lines["passed over"] = f"{counted(Counter(plan.passed_over))}, no images"
    if plan.spool_bytes:
        what = "the images of parquet rows" if plan.tiled is None else "tiles that are cut in one go"
        lines["meanwhile"] = f"{decimal(plan.spool_bytes)} of disk for {what}"
    if plan.free_bytes is not None:
        lines["free"] = decimal(plan.free_bytes)
    if plan.done_shards:
        lines["done"] = f"{plan.done_shards:,} shards stand already"
    lines["where"] = f"{plan.out} (nothing was written)"
    return lines
