"""`coma`: the root command, its commands, and the one place where errors become exit codes."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from coma.cli import bench, faults
from coma.cli.demo import demo
from coma.cli.doctor import doctor
from coma.cli.embed import embed
from coma.cli.export import export
from coma.cli.finetune import finetune
from coma.cli.help import Command, Group
from coma.cli.index import index
from coma.cli.inspect import inspect
from coma.cli.knn import knn
from coma.cli.look import look
from coma.cli.plan import plan
from coma.cli.pretrain import pretrain
from coma.cli.probe import probe
from coma.cli.reconstruct import reconstruct
from coma.cli.report import report
from coma.cli.shard import shard
from coma.cli.verify import verify

app = typer.Typer(
    name="coma",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from coma.installed.versions import coma_version

        typer.echo(f"coma {coma_version()}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print debugging messages on stderr as well.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = -1,  # the deepspeed launcher adds it
) -> None:
    """Take folders of images to a pre-trained vision backbone.

    Begin with coma demo: all steps on a small scale, in minutes on a CPU.
    """
    from coma.cli import console

    console.set_up_logging(int(verbose) - int(quiet))


COMMANDS = {
    "Data": (shard, index, inspect, verify),
    "Train": (plan, pretrain, finetune),
    "Evaluate": (probe, knn, reconstruct, look, report),
    "Use": (export, embed),
    "This machine": (doctor, demo),
}
"""By the heading under which `coma --help` lists them."""

for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)
app.add_typer(bench.app, rich_help_panel="This machine")


def main() -> None:
    """Run the command line; every exception becomes one line and an exit code (`coma.cli.faults`)."""
    faults.prepare_streams()
    with suppress(OSError):  # of a current folder that is gone
        if Path.cwd().resolve() != Path(__file__).resolve().parents[1]:  # where coma itself may be imported from
            os.environ.setdefault("PYTHONSAFEPATH", "1")  # no process that is started imports from the current folder
    try:
        app()
    except SystemExit as left:
        exit_code = left.code
    except (Exception, KeyboardInterrupt) as error:
        exit_code = faults.report(error)
    unwritten = faults.flush_streams()
    sys.exit(exit_code or unwritten)
