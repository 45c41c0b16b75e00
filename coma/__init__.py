"""coma: pre-training of vision backbones with complementary masking.

`import coma` registers the DyViT models with timm and costs nothing by itself: torch, timm and DeepSpeed are
imported when something that needs them is used, so that the command answers at once.

The map, from the images to the trained backbone; each room imports only rooms above it, and its `__init__.py` says
what is in it:

    errors.py           errors, each with its exit code
    installed/          versions, how coma was installed, whether torch, DALI and the driver go together
    shards/             raw images → WebDataset shards and their manifest
    pipeline/           shards → batches of complementary views on the device
    model/              the method: DyViT, CoMA, MAE; start here to understand it (docs/method.md in two pages)
    measure.py          multiply-adds and activation memory of a network
    deepspeed_configs/  the packaged DeepSpeed configurations, zero0 to zero3 and offload
    recipes/            packaged files of options, which `coma pretrain --config` takes by name
    runs/               run folders: names of their files, reading, HTML report
    exports/            export folders: the backbone as an ordinary timm model, with a model card; ONNX
    pictures/           reconstructions, features and attention, the images of a step
    evaluation/         k nearest neighbours, linear probe, accuracy of a classifier
    embedding/          features of any images as a table, and what lies near what
    training/           the training loop; config/ engine/ processes/ tasks/ logs/
    forecast/           what `coma plan` prints: steps, memory, disk, time
    bench/ doctor/ demo/    speed here, checks of this machine, the whole road in minutes
    api/                `coma.pretrain` and the other commands as functions
    cli/                the command, one file a command

`shards/`, `pipeline/`, `cli/`, `deepspeed_configs/` and `recipes/` stand at the root of the repository, and `coma/`
links to them.
"""

from importlib import import_module
from typing import Any

from coma import errors as errors
from coma.model._timm import register_when_imported

_HOMES = {
    "coma.api.functions": (
        *("shard", "index", "verify", "pretrain", "finetune", "probe", "knn", "reconstruct", "export", "embed"),
    ),
    "coma.pipeline": ("Stream",),
    "coma.model.coma": ("CoMA",),
    "coma.model.dyvit": ("DyViT",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = list(_HOME)  # their types, and all keyword arguments, are in __init__.pyi

register_when_imported()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'coma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOME)
