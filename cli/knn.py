"""`coma knn`: nearest neighbours among a run's frozen features."""

from coma.cli.options import BatchSize, Device, Json, LabelledData, RunOrExport


def knn(
    run: RunOrExport,
    data: LabelledData = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    json: Json = False,
) -> None:
    """Classify by the 20 nearest neighbours of frozen features: top-1 in percent.

    Neighbours come from split train, the tested images from split val, or from
    a held-out fifth of train. The result is added to RUN/metrics.jsonl,
    and nothing to an export.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(run, data, protocol=None, batch_size=batch_size, device=device, json=json)
