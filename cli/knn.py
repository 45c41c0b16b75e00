"""`coma knn`: nearest neighbours among a run's frozen features."""

from pathlib import Path
from typing import Annotated

import typer


def knn(
    run: Annotated[Path, typer.Argument(help="Run folder, or one of its checkpoints.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="Labelled data set made by `coma shard`.", show_default="the run's own"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Images at a time.", min=1, metavar="N", rich_help_panel="Running")
    ] = 64,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to run.",
            metavar="cpu|cuda",
            show_default="a GPU if there is one",
            rich_help_panel="Running",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel="Running")
    ] = False,
) -> None:
    """Classify by the 20 nearest neighbours of frozen features: top-1 in percent.

    Neighbours come from split train, the tested images from split val, or from
    a held-out fifth of train. The result is added to RUN/metrics.jsonl.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(run, data, probe=False, knn=True, batch_size=batch_size, device=device, json=json)
