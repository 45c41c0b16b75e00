"""Arguments and options that several commands take."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

RUNNING = "Running"

Run = Annotated[Path, typer.Argument(help="Run folder, or one of its checkpoints.")]
RunOrExport = Annotated[
    Path, typer.Argument(help="Run folder, one of its checkpoints, or what `coma export` wrote.", metavar="RUN|EXPORT")
]
Data = Annotated[
    str | None,
    typer.Argument(
        help="Data set made by `coma shard`: a folder, or a URL (s3://...).",
        show_default="the one in the current folder",
    ),
]
LabelledData = Annotated[
    str | None,
    typer.Argument(
        help="Labelled data set made by `coma shard`: a folder, or a URL (s3://...).", show_default="the run's own"
    ),
]
ShownImages = Annotated[
    list[str] | None,
    typer.Argument(
        help="Image files, folders of images, or a data set made by `coma shard`.", show_default="the run's own data"
    ),
]
Count = Annotated[
    int, typer.Option(help="Number of images, one row each.", min=1, metavar="N", rich_help_panel="Picture")
]
BatchSize = Annotated[
    int, typer.Option(help="Number of images per batch.", min=1, metavar="N", rich_help_panel=RUNNING)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to run on.", metavar="cpu|cuda", show_default="a GPU if there is one", rich_help_panel=RUNNING
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def command_for(data: Path) -> str | None:
    """Return the command that may follow for a data set that is sound; None if nothing is to be trained on."""
    from coma.errors import DataError, shell_command
    from coma.shards.manifest import split_names

    with suppress(DataError):  # of a split that stands alone
        if "train" in split_names(data):
            return shell_command("coma", "pretrain", data)
    return None
