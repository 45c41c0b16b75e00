"""`coma probe`: a linear classifier on frozen features."""

from typing import Annotated, Literal

import typer

from coma.cli.options import BatchSize, Device, Json, LabelledData, RunOrExport


def probe(
    run: RunOrExport,
    data: LabelledData = None,
    protocol: Annotated[
        Literal["logistic", "dinov2", "mae"],
        typer.Option(help="Protocol by which the classifier is fitted (docs/evaluate.md)."),
    ] = "logistic",
    batch_size: BatchSize = 64,
    device: Device = None,
    json: Json = False,
) -> None:
    """Fit a linear classifier on frozen features.

    The result is top-1 accuracy in percent. The classifier is fitted on split
    train and tested on split val, or on a held-out fifth of train. It is added
    to RUN/metrics.jsonl; nothing is written to an export.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(run, data, protocol=protocol, batch_size=batch_size, device=device, json=json)
