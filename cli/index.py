"""`coma index`: WebDataset tars → a data set of links to them, with a manifest."""

from typing import TYPE_CHECKING

from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.shards.index.options import IndexOptions

if TYPE_CHECKING:
    from coma.shards.index.index import IndexProgress

_KEPT_IN_TARS = "; they stay in their tars, where other readers find them"


@from_options(IndexOptions)
def index(options: IndexOptions, json: Json = False) -> None:
    """Make a manifest for WebDataset tars that already exist.

    OUT becomes a data set like those of coma shard, with links to the tars, which
    are not rewritten. Every image is decoded and hashed; damaged ones are left
    out of the manifest, with their reasons (OUT/quarantine.parquet), but stay in
    their tars. The same command resumes where it stopped or was killed.
    """
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn

    from coma.cli.summary import summary_as_json, summary_as_lines
    from coma.shards.index.index import run_command

    with console.progress(
        "indexing", BarColumn(), "{task.fields[done]}", DownloadColumn(), TimeRemainingColumn(compact=True)
    ) as bar:
        bar.live.transient = True  # the summary says it all
        task = bar.add_task("indexing", total=None, done="")

        def show(now: "IndexProgress") -> None:
            aside = f", {now.set_aside:,} set aside" if now.set_aside else ""
            done = f"{now.images:,} images{aside}, {now.tars:,}/{now.total_tars:,} tars,"
            bar.update(task, total=now.total_tar_bytes, completed=now.tar_bytes, done=done)

        summary = run_command(options, show)
    console.print_result(summary_as_json(summary) if json else summary_as_lines(summary, _KEPT_IN_TARS), json=json)
