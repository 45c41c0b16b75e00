"""Registration of DyViT with timm as soon as timm is imported, before or after coma, and not before.

`import coma` must make `timm.create_model("dyvit_base")` work, and must not import torch (the command, and the
sharding workers, need neither). A finder on `sys.meta_path` reconciles the two.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def register_when_imported() -> None:
    """Import `coma.model.dyvit_variants`, whose import registers its models, as soon as timm is there."""
    if "timm" in sys.modules:
        import_module("coma.model.dyvit_variants")
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        import_module("coma.model.dyvit_variants")
