"""`coma probe`: a linear classifier on a run's frozen features."""

from typing import Annotated, Literal

import typer

from coma.cli.options import BatchSize, Device, Json, LabelledData, RunOrExport


def probe(
    run: RunOrExport,
    data: LabelledData = None,
    protocol: Annotated[
        Literal["logistic", "dinov2", "mae"],
        typer.Option(help="How it is fitted: docs/evaluate.md.", rich_help_panel="Probe"),
    ] = "logistic",
    batch_size: BatchSize = 64,
    device: Device = None,
    json: Json = False,
) -> None:
    """Fit a linear classifier on a run's frozen features: top-1 accuracy in percent.

    Fitted on split train and tested on split val, or on a held-out fifth of
    train. The result is added to RUN/metrics.jsonl,
    and nothing to an export.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(run, data, protocol=protocol, batch_size=batch_size, device=device, json=json)
