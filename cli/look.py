"""`coma look`: a picture of the features and the attention of a backbone."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli.options import Count, Device, Json, Run, ShownImages


def look(
    run: Run,
    images: ShownImages = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Picture to write.", metavar="PNG", show_default="RUN/look.png", rich_help_panel="Picture"),
    ] = None,
    count: Count = 6,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images, in pixels; larger ones show finer maps.",
            min=1,
            metavar="PX",
            show_default="as in training",
            rich_help_panel="Picture",
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Draw the features, windows and attention of a backbone.

    Each image has a row with three kinds of maps. Features of the last stages:
    their three strongest principal components as colours, the same in all
    images. Window preference of the heads of a stage: blue for the narrower
    window, orange for the wider, in full colour at the preference in the title
    (1: that window alone). Attention of the framed token in the middle. The
    mean weight of each window is printed for every block; training began at 1.
    """
    from dataclasses import asdict

    from coma.cli import console
    from coma.evaluation.device import choose_device
    from coma.pictures.look import look_at
    from coma.runs.names import export_command
    from coma.runs.read import run_of

    with console.working("drawing features and attention"):
        path, gates = look_at(
            run, images or [], out=out, count=count, image_size=image_size, device=choose_device(device)
        )
    if json:
        console.print_result({"picture": str(path), "gates": [asdict(gate) for gate in gates]}, json=True)
        return
    lines = {"picture": str(path)}
    for gate in gates:
        shares = (
            f"{'all' if window is None else window}: {weight:.2f}"
            for window, weight in zip(gate.windows, gate.weights, strict=True)
        )
        lines[f"stage {gate.stage} block {gate.block}"] = "  ".join(shares)
    console.print_result(lines, json=False, following=export_command(run_of(run)[0]))
