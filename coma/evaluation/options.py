"""Options of `coma knn` and `coma probe`, light to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coma.shards.option import Options, option

_RUNNING = "Running"


@dataclass(frozen=True, kw_only=True)
class KnnOptions(Options):
    """Options of scoring frozen features by their nearest neighbours."""

    run: Path = option(
        help="Run folder, one of its checkpoints, or what `coma export` wrote.", argument=True, metavar="RUN|EXPORT"
    )
    data: Path | str | None = option(
        None,
        help="Labelled data set made by `coma shard`: a folder, or a URL (s3://...).",
        argument=True,
        shown_default="the run's own",
    )
    batch_size: int = option(64, help="Number of images per batch.", panel=_RUNNING, least=1)
    device: str | None = option(
        None, help="Device to run on.", panel=_RUNNING, metavar="cpu|cuda", shown_default="a GPU if there is one"
    )
    devices: int | Literal["auto"] | None = option(
        None,
        help="Number of processes, one per GPU if there are GPUs; auto: one on each. The result is the same.",
        panel=_RUNNING,
        metavar="N|auto",
        least=1,
        shown_default="1",
    )


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(KnnOptions):
    """Options of a linear probe of frozen features."""

    protocol: Literal["logistic", "dinov2", "mae"] = option(
        "logistic", help="Protocol by which the classifier is fitted (docs/evaluate.md)."
    )
