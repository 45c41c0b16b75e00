"""`coma probe`: a linear classifier on frozen features, of images or of pixels."""

from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.evaluation.options import ProbeOptions


@from_options(ProbeOptions)
def probe(options: ProbeOptions, json: Json = False) -> None:
    """Fit a linear classifier on frozen features.

    The result is top-1 accuracy in percent; with --task segmentation, the mIoU
    of a class for every pixel, which neighbours of patches predict too. The
    classifier is fitted on split train and tested on split val, or on a
    held-out fifth of train. The result is added to RUN/metrics.jsonl; nothing
    is written to an export.
    """
    from coma.cli.scoring import score_and_print

    score_and_print(options, json=json)
