"""`coma knn`: classification by nearest neighbours among frozen features."""

from coma.cli.options import BatchSize, Device, Json, LabelledData, RunOrExport


def knn(
    run: RunOrExport, data: LabelledData = None, batch_size: BatchSize = 64, device: Device = None, json: Json = False
) -> None:
    """Classify by the 20 nearest neighbours among frozen features.

    The result is top-1 accuracy in percent. Neighbours come from split train,
    tested images from split val, or from a held-out fifth of train. It is
    added to RUN/metrics.jsonl; nothing is written to an export.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(run, data, protocol=None, batch_size=batch_size, device=device, json=json)
