"""What `coma pretrain` and `coma finetune` share: running, and joining the processes of a launcher."""

from pathlib import Path
from typing import Annotated

import typer

from coma import training
from coma.cli import console
from coma.training import FinetuneConfig, PretrainConfig

_CONFIGS = {config.command: config for config in (PretrainConfig, FinetuneConfig)}


def train(
    config: PretrainConfig | FinetuneConfig, *, json: bool = False, launched: Path | None = None
) -> None:
    """Run a training with a progress line on a terminal, and print its result as JSON if that is asked for."""
    with console.live_line() as watch:
        if isinstance(config, PretrainConfig):
            result = training.pretrain(config, watch, launched)
        else:
            result = training.finetune(config, watch, launched)
    if json and result:
        console.print_result(result, json=True)


def _join_launcher(context: typer.Context, launched: Path | None) -> None:
    """Run the configuration of a file that a launcher wrote, whatever else is on the command line, and leave."""
    if launched is not None:
        train(_CONFIGS[context.info_name or ""].load(launched), launched=launched)
        raise typer.Exit


Launched = Annotated[Path | None, typer.Option(hidden=True, is_eager=True, callback=_join_launcher)]
