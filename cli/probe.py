"""`coma probe`: a linear classifier on a run's frozen features."""

from coma.cli.options import BatchSize, Device, Json, LabelledData, Run


def probe(
    run: Run,
    data: LabelledData = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    json: Json = False,
) -> None:
    """Fit a linear classifier on a run's frozen features: top-1 accuracy in percent.

    Fitted on split train and tested on split val, or on a held-out fifth of
    train. The result is added to RUN/metrics.jsonl.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(run, data, probe=True, knn=False, batch_size=batch_size, device=device, json=json)
