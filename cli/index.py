"""`coma index`: WebDataset tars → a data set of links to them, with a manifest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coma.cli import console

if TYPE_CHECKING:
    from coma.shards.index import IndexProgress
    from coma.shards.summary import ShardSummary


def index(
    source: Annotated[Path, typer.Argument(help="Folder of WebDataset tars, at any depth, or one tar.")],
    out: Annotated[
        Path | None,
        typer.Argument(help="New or empty folder.", show_default="NAME-index, in this folder"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes.", metavar="N", show_default="one a core")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Give existing WebDataset tars a manifest, without rewriting them.

    OUT becomes a data set like those of coma shard, with links to the tars. Every
    image is decoded and hashed; damaged ones are left out of the manifest, with
    their reasons (OUT/quarantine.parquet), but stay in their tars. Stopped or
    killed, the same command goes on where it was.
    """
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn

    from coma.shards.index import default_out
    from coma.shards.index import index as make_index

    with console.progress(
        "indexing", BarColumn(), "{task.fields[done]}", DownloadColumn(), TimeRemainingColumn(compact=True)
    ) as bar:
        bar.live.transient = True  # the summary says it all
        task = bar.add_task("indexing", total=None, done="")

        def show(now: "IndexProgress") -> None:
            aside = f", {now.set_aside:,} set aside" if now.set_aside else ""
            done = f"{now.images:,} images{aside}, {now.tars:,}/{now.total_tars:,} tars,"
            bar.update(task, total=now.total_tar_bytes, completed=now.tar_bytes, done=done)

        summary = make_index(source, out or default_out(source), workers=workers, progress=show)
    console.print_result(_as_json(summary) if json else _as_lines(summary), json=json)


def _as_json(summary: "ShardSummary") -> dict[str, Any]:
    return {
        "out": str(summary.out),
        "found": summary.found,
        "kept": summary.kept,
        "set_aside": summary.set_aside,
        "reasons": summary.reasons,
        "classes": summary.classes,
        "tars": summary.shards,
        "bytes": summary.shard_bytes,
        "splits": {
            split.name: {"images": split.images, "tars": split.shards, "bytes": split.shard_bytes}
            for split in summary.splits
        },
        "tars_from_before": summary.kept_shards,
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
        "set aside": f"{summary.set_aside:,} ({kinds}): see quarantine.parquet; they stay in their tars, where "
        "other readers find them"
        if summary.set_aside
        else "none",
        "tars": f"{summary.shards:,}, {decimal(summary.shard_bytes)} in all, in {summary.elapsed_s:.1f} s",
        "where": str(summary.out),
        "next": f"coma pretrain {out}",
    }
