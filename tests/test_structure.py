"""The walls of the house: imports go one way, heavy libraries stay in their rooms, the command starts light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cli", "coma", "pipeline", "shards")  # each may import those to its right, never to its left

# which rooms or files may import a library at all
CONFINED = {
    "deepspeed": ("coma/training/", "coma/forecast/memory.py"),
    "wandb": ("coma/training/logs/trackers.py",),
    "mlflow": ("coma/training/logs/trackers.py",),
    "nvidia": ("pipeline/decode.py", "coma/bench/"),
    "fsspec": ("pipeline/download.py", "shards/"),
    "webdataset": ("shards/", "coma/bench/"),
    "typer": ("cli/",),
    "litdata": ("coma/bench/",),
    "streaming": ("coma/bench/",),
    "ffcv": ("coma/bench/",),
}
PURE = {
    "shards/splitmix64.py",
    "pipeline/counter.py",
    "pipeline/order.py",
    "pipeline/crops.py",
    "pipeline/views.py",
}


def sources() -> list[Path]:
    """Every module of the package, once: `coma/`'s links to the rooms are not followed."""
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    return sorted(
        f for f in files if not any(p.is_symlink() for p in f.relative_to(ROOT).parents if (ROOT / p) != ROOT)
    )


def imports(file: Path) -> set[str]:
    """Every dotted name that a file imports, at any depth, outside `if TYPE_CHECKING`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room(module: str) -> str | None:
    """Name the room that a dotted module name lies in; None outside the package and for the leaf `coma.errors`."""
    parts = module.split(".")
    if parts[0] != "coma" or parts[1:2] == ["errors"]:
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "coma"


@pytest.mark.parametrize("file", sources(), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    path = str(file.relative_to(ROOT))
    here = ROOMS.index(path.split("/")[0])
    for name in imports(file):
        there = room(name)
        if there is not None and path != "coma/__main__.py":
            assert ROOMS.index(there) >= here, f"{path} imports {name}, which lies above it"
        library = name.split(".")[0]
        if library in CONFINED:
            assert path.startswith(CONFINED[library]), (
                f"{path} imports {library}, confined to {CONFINED[library]}"
            )


@pytest.mark.parametrize("path", sorted(PURE))
def test_pure_modules_import_numbers_only(path: str) -> None:
    allowed = {"numpy", "torch", "coma", *sys.stdlib_module_names}
    for name in imports(ROOT / path):
        assert name.split(".")[0] in allowed, f"{path} imports {name}"
        if name.startswith("coma."):
            assert name.startswith(tuple("coma." + p.removesuffix(".py").replace("/", ".") for p in PURE))


def modules_after(*arguments: str) -> set[str]:
    """Run python with the arguments and return the modules it had loaded in the end."""
    code = (
        "import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr));"
        f"sys.argv = {['coma', *arguments]!r}; import runpy; runpy.run_module('coma', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("--help")
    assert loaded.isdisjoint({"torch", "deepspeed", "numpy", "pyarrow", "timm", "PIL", "nvidia.dali"})


@pytest.mark.parametrize("order", ["import coma, timm", "import timm, coma", "import coma, timm.models"])
def test_importing_coma_registers_dyvit_in_either_order(order: str) -> None:
    code = f"{order}\nassert timm.is_model('dyvit_base')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_coma_alone_is_light() -> None:
    code = "import sys, coma, coma.shards; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
