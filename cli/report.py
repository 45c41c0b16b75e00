"""`coma report`: a run in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel="Running")
    ] = False,
) -> None:
    """Write RUN/report.html: curves, pictures, scores and configuration.

    One file that holds everything; it can be mailed and read offline.
    """
    from coma.cli import console
    from coma.runs.report import write_report

    console.print_result({"report": str(write_report(run))}, json=json)
