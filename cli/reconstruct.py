"""`coma reconstruct`: a picture of what a run's network paints."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli.options import Device, Json, Run, ShownImages


def reconstruct(
    run: Run,
    images: ShownImages = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The picture to write.",
            metavar="PNG",
            show_default="RUN/reconstruction.png",
            rich_help_panel="Picture",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(help="Images, a row each.", min=1, metavar="N", rich_help_panel="Picture")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of the masks.", metavar="N", rich_help_panel="Picture")] = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Paint originals, views and reconstructions side by side.

    Each view's hidden units are grey, then painted from what the view sees.
    """
    from coma.cli import console
    from coma.evaluation.evaluate import choose_device
    from coma.pictures.reconstruct import reconstruct_run

    path = reconstruct_run(run, images or [], out=out, count=count, seed=seed, device=choose_device(device))
    console.print_result({"picture": str(path)}, json=json)
