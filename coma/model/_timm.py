"""Registration of DyViT with timm as soon as timm is imported, before or after coma, and not before.

`import coma` must make `timm.create_model("dyvit_base")` work, and must not import torch (the command, and the
sharding workers, need neither). A finder on `sys.meta_path` reconciles the two.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def register_when_imported() -> None:
    """Import `coma.model.dyvit_variants`, whose import registers its models, as soon as timm is imported."""
    if "timm" in sys.modules:
        import_module("coma.model.dyvit_variants")
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder:  # not a MetaPathFinder: importlib.abc takes 9 ms of every command's start
    """Finds timm as the other finders do, and makes its import end with that of DyViT's variants."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module("coma.model.dyvit_variants")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
