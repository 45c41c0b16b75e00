"""`coma look`: a picture of what a run's backbone sees."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli.options import Device, Json, Run, ShownImages


def look(
    run: Run,
    images: ShownImages = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The picture to write.",
            metavar="PNG",
            show_default="RUN/look.png",
            rich_help_panel="Picture",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(help="Images, a row each.", min=1, metavar="N", rich_help_panel="Picture")
    ] = 6,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="A side in pixels; larger ones show finer maps.",
            min=1,
            metavar="PX",
            show_default="the training's",
            rich_help_panel="Picture",
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Draw what the backbone sees: features, windows, attention.

    A row an image. Features of the last stages, their three strongest principal
    components as colours, the same in all images. Which of their windows a
    stage's heads prefer where: blue the narrower, orange the wider, full colour
    at the preference in the title (1: that window alone). And where the framed
    token in the middle looks. The mean weights of the windows are
    printed for every block; 1 is where training began.
    """
    from dataclasses import asdict

    from coma.cli import console
    from coma.evaluation.evaluate import choose_device
    from coma.pictures.look import look_at

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
    console.print_result(lines, json=False)
