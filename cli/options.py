"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

RUNNING = "Running"

Run = Annotated[Path, typer.Argument(help="Run folder, or one of its checkpoints.")]
RunOrExport = Annotated[
    Path,
    typer.Argument(
        help="Run folder, one of its checkpoints, or what `coma export` wrote.", metavar="RUN|EXPORT"
    ),
]
LabelledData = Annotated[
    str | None,
    typer.Argument(
        help="Labelled data set made by `coma shard`: a folder or URL.", show_default="the run's own"
    ),
]
ShownImages = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Image files, folders of images, or a data set made by `coma shard`.",
        show_default="the run's own data",
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Images at a time.", min=1, metavar="N", rich_help_panel=RUNNING)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where to run.",
        metavar="cpu|cuda",
        show_default="a GPU if there is one",
        rich_help_panel=RUNNING,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUNNING)]
