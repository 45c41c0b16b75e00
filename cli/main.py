"""`coma`: the root command, its commands, and the one place where errors become exit codes."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from coma.cli import bench
from coma.cli.demo import demo
from coma.cli.doctor import doctor
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
from coma.errors import ComaError
from coma.shards.files import without_credentials

app = typer.Typer(
    name="coma",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"coma {version('coma')}")
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
    "Use": (export,),
    "This machine": (doctor, demo),
}
"""By the heading under which `coma --help` lists them."""

for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)
app.add_typer(bench.app, rich_help_panel="This machine")


def main() -> None:
    """Run the command line; a `ComaError` becomes one line and its exit code, and Ctrl-C exit code 130 (by Typer)."""
    with suppress(OSError):  # of a current folder that is gone
        if Path.cwd().resolve() != Path(__file__).resolve().parents[1]:  # where coma itself may be imported from
            os.environ.setdefault("PYTHONSAFEPATH", "1")  # no process that is started imports from the current folder
    try:
        app()
    except ComaError as error:
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {without_credentials(str(error))}", err=True)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch is not imported for its sake
            raise
        typer.echo(
            f"{typer.style('error:', fg='red', bold=True)} the GPU's memory does not hold it: give a smaller "
            "--batch-size, or --device cpu where the command has it",
            err=True,
        )
        sys.exit(1)
