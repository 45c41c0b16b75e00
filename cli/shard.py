"""`coma shard`: a folder of images → WebDataset shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coma.cli import console
from coma.errors import UsageError

if TYPE_CHECKING:
    from coma.shards.writer import ShardSummary


def shard(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of images, with class folders or without, with train/ and val/ or without."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            help="New or empty folder for the shards.", show_default="NAME-shards, in this folder"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the shuffle.", metavar="N", rich_help_panel="Shards")
    ] = 0,
    shard_bytes: Annotated[
        str,
        typer.Option(
            help="Size of a shard: 256MiB, 1GB, plain bytes.", metavar="SIZE", rich_help_panel="Shards"
        ),
    ] = "256MiB",
    val_fraction: Annotated[
        float,
        typer.Option(
            help="Hold this part out as split val, if SOURCE has none.", metavar="X", rich_help_panel="Shards"
        ),
    ] = 0.0,
    resize: Annotated[
        int | None,
        typer.Option(
            help="Re-encode as JPEG, shorter side at most PX pixels.",
            metavar="PX",
            show_default="bytes as they are",
            rich_help_panel="Images",
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            help="JPEG quality, 1 to 100, with --resize.",
            metavar="Q",
            show_default="90",
            rich_help_panel="Images",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes.", metavar="N", show_default="one a core", rich_help_panel="Running"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel="Running")
    ] = False,
) -> None:
    """Pack a folder of images into WebDataset shards.

    Images are shuffled once and for all by seed and copied untouched; damaged
    ones are set aside with their reasons (OUT/quarantine.parquet). Stopped or
    killed, the same command goes on where it was.
    """
    from coma.shards import writer
    from coma.shards.units import parse_bytes

    if quality is not None and resize is None:
        raise UsageError(f"--quality {quality} only matters when images are re-encoded; add --resize PX")
    given: dict[str, Any] = {"quality": quality, "workers": workers}
    options = writer.ShardOptions(
        seed=seed,
        shard_bytes=parse_bytes(shard_bytes, "--shard-bytes"),
        resize_px=resize,
        val_fraction=val_fraction,
        **{name: value for name, value in given.items() if value is not None},
    )
    with _Bar() as bar:
        summary = writer.shard(source, out or writer.default_out(source), options, bar.show)
    console.print_result(_as_json(summary) if json else _as_lines(summary), json=json)


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
        if self.progress.tasks[0].total is None:
            self.first_images = now.images  # those of an earlier run do not count for the rate
            self.progress.reset(self.task, description="sharding", total=now.total_source_bytes)
        elapsed_s = self.progress.tasks[0].elapsed or 0
        rate = f"{(now.images - self.first_images) / elapsed_s:,.0f}" if elapsed_s > 0.5 else "-"
        aside = f", {now.set_aside:,} set aside" if now.set_aside else ""
        self.progress.update(
            self.task,
            completed=now.source_bytes,
            done=f"{now.images:,}/{now.total_images:,}{aside}, {rate} img/s, {decimal(now.source_bytes)}",
        )


def _as_json(summary: "ShardSummary") -> dict[str, Any]:
    return {
        "out": str(summary.out),
        "found": summary.found,
        "kept": summary.kept,
        "set_aside": summary.set_aside,
        "reasons": summary.reasons,
        "classes": summary.classes,
        "shards": summary.shards,
        "bytes": summary.shard_bytes,
        "splits": {
            split.name: {"images": split.images, "shards": split.shards, "bytes": split.shard_bytes}
            for split in summary.splits
        },
        "shards_from_before": summary.kept_shards,
        "elapsed_s": round(summary.elapsed_s, 3),
    }


def _as_lines(summary: "ShardSummary") -> dict[str, str]:
    from shlex import quote

    from rich.filesize import decimal

    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.reasons.items())
    kept = ", ".join(f"{split.name} {split.images:,}" for split in summary.splits)
    out = quote(str(summary.out))
    return {
        "found": f"{summary.found:,} images",
        "kept": f"{summary.kept:,} ({kept})"
        if len(summary.splits) > 1
        else f"{summary.kept:,}, split {kept}",
        "set aside": f"{summary.set_aside:,} ({kinds}): see quarantine.parquet"
        if summary.set_aside
        else "none",
        "shards": f"{summary.shards:,}, {decimal(summary.shard_bytes)} in all, in {summary.elapsed_s:.1f} s",
        "where": str(summary.out),
        "next": f"coma pretrain {out}",
    }
