"""The data stream: from shards to batches of complementary views on the device.

`Stream` is the entry point, `views` the partition of mask units alone. Importing this package imports nothing heavy;
the names below are imported when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coma.pipeline import views as views
    from coma.pipeline.preprocessing import MEAN as MEAN
    from coma.pipeline.preprocessing import STD as STD
    from coma.pipeline.preprocessing import Preprocessing as Preprocessing
    from coma.pipeline.sizes import CropSizes as CropSizes
    from coma.pipeline.stream import Batch as Batch
    from coma.pipeline.stream import Stream as Stream

__all__ = ["MEAN", "STD", "Batch", "CropSizes", "Preprocessing", "Stream", "views"]

_HOME = {
    **dict.fromkeys(("Stream", "Batch"), "stream"),
    **dict.fromkeys(("MEAN", "STD", "Preprocessing"), "preprocessing"),
    "CropSizes": "sizes",
}


def __getattr__(name: str) -> Any:
    if name == "views":
        return import_module("coma.pipeline.views")
    if name in _HOME:
        return getattr(import_module(f"coma.pipeline.{_HOME[name]}"), name)
    raise AttributeError(f"module 'coma.pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "views", *_HOME])
