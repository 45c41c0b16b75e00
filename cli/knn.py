"""`coma knn`: classification by nearest neighbours among frozen features."""

from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.evaluation.options import KnnOptions


@from_options(KnnOptions)
def knn(options: KnnOptions, json: Json = False) -> None:
    """Classify by the 20 nearest neighbours among frozen features.

    The result is top-1 accuracy in percent; with --task segmentation, the mIoU
    of a class for every pixel by the nearest patches, of 1 to 30. Neighbours
    come from split train, tested images from split val, or from a held-out
    fifth of train. The result is added to RUN/metrics.jsonl; nothing is
    written to an export.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(options, json=json)
