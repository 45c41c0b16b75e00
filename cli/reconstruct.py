"""`coma reconstruct`: a picture of what a network reconstructs."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli.options import Count, Device, Json, Run, ShownImages


def reconstruct(
    run: Run,
    images: ShownImages = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write.", metavar="PNG", show_default="RUN/reconstruction.png", rich_help_panel="Picture"
        ),
    ] = None,
    count: Count = 8,
    seed: Annotated[
        int,
        typer.Option(help="Random seed for the masks.", min=0, max=2**63 - 1, metavar="N", rich_help_panel="Picture"),
    ] = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Draw originals, views and reconstructions side by side.

    The hidden units of a view are grey; its reconstruction predicts them from
    the visible ones.
    """
    from coma.cli import console
    from coma.errors import shell_command
    from coma.evaluation.device import choose_device
    from coma.pictures.reconstruct import reconstruct_run

    path = reconstruct_run(run, images or [], out=out, count=count, seed=seed, device=choose_device(device))
    console.print_result({"picture": str(path)}, json=json, following=shell_command("coma", "look", run))
