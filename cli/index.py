"""`coma index`: WebDataset tars → a data set of links to them, with a manifest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console
from coma.cli.options import Json

if TYPE_CHECKING:
    from coma.shards.index.index import IndexProgress

_KEPT_IN_TARS = "; they stay in their tars, where other readers find them"


def index(
    source: Annotated[Path, typer.Argument(help="Folder of WebDataset tars, at any depth, or one tar.")],
    out: Annotated[
        Path | None, typer.Argument(help="New or empty folder.", show_default="NAME-index in the current folder")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of worker processes.", metavar="N", show_default="one per core")
    ] = None,
    json: Json = False,
) -> None:
    """Make a manifest for WebDataset tars that already exist.

    OUT becomes a data set like those of coma shard, with links to the tars, which
    are not rewritten. Every image is decoded and hashed; damaged ones are left
    out of the manifest, with their reasons (OUT/quarantine.parquet), but stay in
    their tars. The same command resumes where it stopped or was killed.
    """
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn

    from coma.cli.summary import summary_as_json, summary_as_lines
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
    console.print_result(summary_as_json(summary) if json else summary_as_lines(summary, _KEPT_IN_TARS), json=json)
