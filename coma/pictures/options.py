"""Options of `coma reconstruct`, light to import."""

from dataclasses import dataclass
from pathlib import Path

from coma.shards.option import Options, option

_PICTURE = "Picture"


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(Options):
    """Options of a picture of reconstructions."""

    run: Path = option(help="Run folder, or one of its checkpoints.", argument=True)
    images: list[str] | None = option(
        None,
        help="Image files, folders of images, or a data set made by `coma shard`.",
        argument=True,
        shown_default="the run's own data",
    )
    out: Path | None = option(
        None, help="Picture to write.", panel=_PICTURE, metavar="PNG", shown_default="RUN/reconstruction.png"
    )
    count: int = option(8, help="Number of images, one row each.", panel=_PICTURE, least=1)
    seed: int = option(0, help="Random seed for the masks.", panel=_PICTURE, least=0, below=2**63)
    show_channels: str | None = option(
        None,
        help="Channels shown as red, green and blue, counted from 1, such as 4,3,2; one alone is shown in grey.",
        panel=_PICTURE,
        metavar="N,N,N",
        shown_default="1,2,3",
    )
    device: str | None = option(
        None, help="Device to run on.", panel="Running", metavar="cpu|cuda", shown_default="a GPU if there is one"
    )
