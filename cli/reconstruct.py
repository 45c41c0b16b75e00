"""`coma reconstruct`: a picture of what a network reconstructs."""

from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.pictures.options import ReconstructOptions


@from_options(ReconstructOptions)
def reconstruct(options: ReconstructOptions, json: Json = False) -> None:
    """Draw originals, views and reconstructions side by side.

    The hidden units of a view are grey; its reconstruction predicts them from
    the visible ones.
    """
    from coma.cli import console
    from coma.errors import shell_command
    from coma.evaluation.device import choose_device
    from coma.pictures.reconstruct import draw

    with console.working("drawing reconstructions"):
        path = draw(options, choose_device(options.device))
    console.print_result({"picture": str(path)}, json=json, following=shell_command("coma", "look", options.run))
