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
    from coma.runs.report import write_report

    console.print_result({"report": str(write_report(run))}, json=json)
