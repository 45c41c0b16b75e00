"""Options of `coma export`, light to import."""

from dataclasses import dataclass
from pathlib import Path

from coma.shards.option import Options, option

_HUB = "Hugging Face Hub"


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Options of an export."""

    run: Path = option(help="Run folder, or one of its checkpoints.", argument=True)
    folder: Path = option(help="Folder to write: new, empty, or an earlier export.", argument=True, metavar="DIR")
    with_decoder: bool = option(False, help="Write the decoder as well, for `coma pretrain --init DIR`.")
    onnx: bool = option(False, help="Write DIR/model.onnx as well, which needs the extra onnx.")
    license: str | None = option(
        None,
        help="License for the model card, such as apache-2.0 or cc-by-nc-4.0; --push wants one.",
        metavar="NAME",
        shown_default="unknown",
    )
    push: str | None = option(
        None,
        help="Repository of the Hugging Face Hub to upload DIR to; it is made if there is none.",
        panel=_HUB,
        metavar="OWNER/NAME",
        shown_default="none",
    )
    private: bool = option(False, help="Make a new repository private.", panel=_HUB)
