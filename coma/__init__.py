"""coma: pre-training of vision backbones with complementary masking.

`import coma` registers the DyViT models with timm and costs nothing by itself: torch, timm and DeepSpeed are
imported when something that needs them is used, so that the command answers at once.

docs/method.md tells the method in two pages. The code, in the order in which to read it:

    pipeline/views.py   complementary views: which mask units each sees
    layout.py           where tokens lie, so that windows and merges are reshapes
    attention.py        DM-MSA
    blocks.py           what DyViT is made of
    dyvit.py            the backbone and its variants
    encoders.py         a plain ViT under the same interface
    decoder.py          hidden patches ask the visible ones
    autoencoder.py      views through encoder, decoder and loss: CoMA
    baseline.py         MAE, for comparison
    independent.py      random masks that do not complement each other, the control
    methods.py          all of them by name

and then its use:

    classifier.py       a backbone with a classifier, for fine-tuning
    training/           DeepSpeed, the loop, checkpoints; pre-training and fine-tuning
    evaluation/         kNN, linear probe, a classifier's accuracy
    reconstruct.py      pictures of what is predicted
    export/             the backbone as an ordinary timm model
    report.py           a run as a page

What comes before is in `shards/` and `pipeline/`; the command is in `cli/`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coma.model._timm import register_when_imported

if TYPE_CHECKING:
    from coma.model.coma import CoMA as CoMA
    from coma.model.dyvit import DyViT as DyViT

__all__ = ["CoMA", "DyViT"]

_HOME = {"CoMA": "coma.model.coma", "DyViT": "coma.model.dyvit"}

register_when_imported()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'coma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
