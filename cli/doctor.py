"""`coma doctor`."""

from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli import console

if TYPE_CHECKING:
    from coma.doctor.finding import Finding

_WIDTH = 80
_INDENT = 21
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    url: Annotated[
        str | None,
        typer.Option(help="Also try to reach a data set.", metavar="URL", show_default="no network is used"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check this machine: software, GPUs, decoding, disk, memory, limits.

    Each line is ok, a warning or a problem, with what to do about it. Exits
    with 1 if there is a problem.
    """
    from coma.doctor.examine import checks, examine

    found = {}
    for name, finding in examine(checks(url)):
        found[name] = finding
        if not json:
            _print(name, finding)
    count = {status: sum(each.status == status for each in found.values()) for status in _STYLES}
    if json:
        listed = [{"name": name, **finding.to_json()} for name, finding in found.items()]
        console.print_result({"checks": listed, **count}, json=True)
    if count["problem"]:
        raise typer.Exit(1)


def _print(name: str, finding: "Finding") -> None:
    from textwrap import wrap

    from rich.text import Text

    line = Text(f"{finding.status:<9}", style=_STYLES[finding.status])
    first, *rest = wrap(finding.text, _WIDTH - _INDENT) or [""]
    line.append(f"{name:<{_INDENT - 9}}{first}", style="default not bold")
    console.stdout.print(line)
    advice = wrap(f"→ {finding.advice}", _WIDTH - _INDENT) if finding.advice else []
    for text in [*rest, *advice]:
        console.stdout.print(" " * _INDENT + text, markup=False)
