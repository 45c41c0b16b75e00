"""`coma report`: a run in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli.options import Json


def report(run: Annotated[Path, typer.Argument(help="Run folder.")], json: Json = False) -> None:
    """Write an HTML report: curves, pictures, scores and options.

    RUN/report.html holds everything: it can be mailed and read offline.
    """
    from coma.cli import console
    from coma.runs.names import export_command
    from coma.runs.read import latest_checkpoint
    from coma.runs.report import write_report

    with console.working("drawing curves"):
        result = {"report": str(write_report(run))}
    console.print_result(result, json=json, following=export_command(run) if latest_checkpoint(run) else None)
