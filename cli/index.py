"""`coma index`: WebDataset tars → a data set of links to them, with a manifest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console

if TYPE_CHECKING:
    from coma.shards.index.index import IndexProgress

_STAY = "; they stay in their tars, where other readers find them"


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

    from coma.cli.accounts import summary_as_json, summary_as_lines
    from coma.shards.index.index import default_out
    from coma.shards.index.index import index as make_index

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
    console.print_result(summary_as_json(summary) if json else summary_as_lines(summary, _STAY), json=json)
