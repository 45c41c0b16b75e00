"""coma: pre-training of vision backbones with complementary masking.

`import coma` registers the DyViT models with timm and costs nothing by itself: torch, timm and DeepSpeed are
imported when something that needs them is used, so that the command answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coma._timm import register_when_imported

if TYPE_CHECKING:
    from coma.autoencoder import CoMA as CoMA
    from coma.dyvit import DyViT as DyViT

__all__ = ["CoMA", "DyViT"]

_HOME = {"CoMA": "coma.autoencoder", "DyViT": "coma.dyvit"}

register_when_imported()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'coma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
