"""`coma doctor`: checks of this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console
from coma.cli.options import Json

if TYPE_CHECKING:
    from coma.doctor.finding import Finding

_WIDTH = 80
_INDENT = 21
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    url: Annotated[
        str | None, typer.Option(help="Data set to reach over the network as well.", metavar="URL", show_default="none")
    ] = None,
    json: Json = False,
) -> None:
    """Check software, GPUs, decoding, disk, memory and limits.

    Each line is ok, a warning or a problem, with what to do about it. The exit
    code is 1 if there is a problem.
    """
    from coma.doctor.examine import checks, examine

    findings = {}
    for name, finding in examine(checks(url)):
        findings[name] = finding
        if not json:
            _print(name, finding)
    count = {status: sum(each.status == status for each in findings.values()) for status in _STYLES}
    if json:
        listed = [{"name": name, **finding.to_json()} for name, finding in findings.items()]
        console.print_result({"checks": listed, **count}, json=True)
    if count["problem"]:
        raise typer.Exit(1)


def _print(name: str, finding: "Finding") -> None:
    from rich.text import Text

    line = Text(f"{finding.status:<9}", style=_STYLES[finding.status])
    first, *rest = _lines(finding.text) or [""]
    line.append(f"{name:<{_INDENT - 9}}{first}", style="default not bold")
    console.stdout.print(line)
    advice = _lines(f"→ {finding.advice}") if finding.advice else []
    for text in [*rest, *advice]:
        console.stdout.print(" " * _INDENT + text)


def _lines(text: str) -> list[str]:
    """Return the text in lines that leave words whole, the options of commands too."""
    from textwrap import wrap

    return wrap(text, _WIDTH - _INDENT, break_on_hyphens=False)
