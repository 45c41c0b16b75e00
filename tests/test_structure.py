"""The walls of the house: imports go one way and in no circle, heavy libraries stay in their rooms, rooms are small."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cli", "coma", "pipeline", "shards")

# Each floor may import those below it, never those above it, nor a neighbour on its own floor.
FLOORS = (
    ("coma.errors",),
    ("coma.installed",),
    ("coma.shards",),
    ("coma.pipeline",),
    ("coma.model", "coma.measure", "coma.deepspeed_configs", "coma.recipes"),
    ("coma.runs",),
    ("coma.exports", "coma.pictures"),
    ("coma.evaluation",),
    ("coma.embedding",),
    ("coma.training",),
    ("coma.forecast", "coma.bench", "coma.doctor", "coma.demo"),
    ("coma.api",),
    ("coma.cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# The rooms or files that may import a library at all.
CONFINED = {
    "deepspeed": ("coma/training/",),
    "wandb": ("coma/training/logs/trackers.py",),
    "mlflow": ("coma/training/logs/trackers.py",),
    "trackio": ("coma/training/logs/trackers.py",),
    "nvidia": ("pipeline/decode.py", "coma/bench/"),
    "fsspec": ("pipeline/download.py", "shards/"),
    "webdataset": ("shards/",),
    "typer": ("cli/",),
}
PURE = {
    "shards/splitmix64.py",
    "pipeline/counter.py",
    "pipeline/order.py",
    "pipeline/mixture.py",
    "pipeline/crops.py",
    "pipeline/views.py",
}

MOST_MODULES = 14
"""In a folder, so that a newcomer takes it in at a glance; `cli/` has a file a command, `pipeline/` is a chain."""
IN_COMA_ITSELF = {"__init__", "__main__", "errors", "measure"}
MOST_LINES = 46_000
"""Of source, without tests."""


def sources() -> list[Path]:
    """Every module of the package, once: `coma/`'s links to the other folders are not followed."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    return sorted(
        f for f in files if not any(p.is_symlink() for p in f.relative_to(ROOT).parents if (ROOT / p) != ROOT)
    )


def module(file: Path) -> str:
    """Return the dotted name under which a file is imported."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "coma" else ("coma", *parts))


def imports(file: Path) -> set[str]:
    """Return every dotted name that a file imports, at any depth, for types as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


FILES = {module(file): file for file in sources()}


def imported_modules(name: str) -> set[str]:
    """Return the modules of the project that a module imports, itself apart."""
    found = set()
    for imported in imports(FILES[name]):
        if not imported.startswith("coma"):
            continue
        parent = imported.rpartition(".")[0]
        found.add(imported if imported in FILES else parent)
    return {each for each in found if each in FILES} - {name}


def room(name: str) -> str:
    """Name the room of a module: `coma.model` for `coma.model.layout`."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("name", sorted(set(FILES) - {"coma", "coma.__main__"}))
def test_imports_go_downwards_only(name: str) -> None:
    path = str(FILES[name].relative_to(ROOT))
    for imported in imported_modules(name):
        if room(imported) != room(name):
            assert imported != "coma" or room(name) == "coma.cli", f"{path} imports the package itself"
            assert FLOOR[room(imported)] < FLOOR[room(name)], f"{path} imports {imported}, which is not below it"
    for library in {imported.split(".")[0] for imported in imports(FILES[name])} & CONFINED.keys():
        assert path.startswith(CONFINED[library]), f"{path} imports {library}, confined to {CONFINED[library]}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports under `TYPE_CHECKING` and inside functions count. A package's `__init__` that hands on names of its
    own modules is no circle: those do not import it.
    """
    edges = {name: imported_modules(name) for name in FILES if name != "coma"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for imported in edges.get(name, ()):
                visit(imported, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_rooms_are_small() -> None:
    folders: dict[Path, set[str]] = {}
    for file in FILES.values():
        folders.setdefault(file.parent, set()).add(file.stem)
    for folder, stems in folders.items():
        if folder.relative_to(ROOT) not in (Path("cli"), Path("pipeline")):
            modules = stems - {"__init__"}
            assert len(modules) <= MOST_MODULES, f"{folder.relative_to(ROOT)} has {len(modules)} modules"
    assert folders[ROOT / "coma"] <= IN_COMA_ITSELF


def test_the_source_does_not_grow_unnoticed() -> None:
    lines = sum(len(file.read_text().splitlines()) for file in FILES.values())
    assert lines <= MOST_LINES


@pytest.mark.parametrize("path", sorted(PURE))
def test_pure_modules_import_numbers_only(path: str) -> None:
    allowed = {"numpy", "torch", "coma", *sys.stdlib_module_names}
    pure = {module(ROOT / each) for each in PURE}
    assert {name.split(".")[0] for name in imports(ROOT / path)} <= allowed
    assert imported_modules(module(ROOT / path)) <= pure


def test_docstrings_are_no_fragments() -> None:
    """A docstring, or the text under a field, says in words what the thing is: not "N." or "Of matrices."."""
    for file in FILES.values():
        texts = (node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Expr))
        for text in texts:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                where = f"{file.relative_to(ROOT)}:{text.lineno}: {text.value}"
                assert len(text.value.split()) > 1, where
                assert not text.value.startswith("Of "), where


def test_no_two_tests_have_one_name() -> None:
    """pytest imports test files by their bare names."""
    names = [file.name for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    assert len(names) == len(set(names))


def test_tests_mirror_the_tree() -> None:
    """A room's tests stand in the folder of its name."""
    rooms = {folder for file in FILES.values() for folder in file.relative_to(ROOT).parents}
    others = {Path("helpers"), Path("older"), Path("benchmarks")}
    folders = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    assert folders - others <= rooms, sorted(map(str, folders - others - rooms))


def modules_after(*arguments: str) -> set[str]:
    """Run python with the arguments and return the modules it had loaded in the end."""
    code = (
        "import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr));"
        f"sys.argv = {['coma', *arguments]!r}; import runpy; runpy.run_module('coma', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


HEAVY = {"torch", "deepspeed", "numpy", "pyarrow", "timm", "PIL", "nvidia.dali", "xxhash", "upath", "fsspec"}


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["shard", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert modules_after(*arguments).isdisjoint(HEAVY)


@pytest.mark.parametrize("order", ["import timm, coma", "import coma, timm.models"])
def test_importing_coma_registers_dyvit_in_either_order(order: str) -> None:
    code = f"{order}\nassert timm.is_model('dyvit_base')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_coma_alone_is_light() -> None:
    code = "import sys, coma, coma.shards; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_map_of_the_house_names_every_room() -> None:
    """The docstring of `coma` has a line for each folder and file beside it."""
    text = ast.get_docstring(ast.parse((ROOT / "coma" / "__init__.py").read_text())) or ""
    rooms = {name.split(".")[1] for name in chain.from_iterable(FLOORS)}
    missing = {each for each in rooms if f"{each}/" not in text and f"{each}.py" not in text}
    assert not missing


OPTIONAL = {"aiohttp", "mlflow", "trackio", "wandb"}
"""Asked for in one line by what uses them; no extra holds them."""
DISTRIBUTIONS = {
    "PIL": {"pillow"},
    "huggingface_hub": {"huggingface-hub"},
    "nvidia": {
        "nvidia-dali-cuda120",
        "nvidia-dali-cuda130",
        "nvidia-nvimgcodec-cu12",
        "nvidia-nvimgcodec-cu13",
    },
    "upath": {"universal-pathlib"},
    "yaml": {"pyyaml"},
}
"""Of the modules that are not called as their distribution is."""


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {re.split(r"[\[<>=]", line)[0] for line in lines}
    imported = {name.split(".")[0] for file in FILES.values() for name in imports(file)}
    needed = imported - set(sys.stdlib_module_names) - {"coma"} - OPTIONAL
    missing = {module for module in needed if not DISTRIBUTIONS.get(module, {module}) <= declared}
    assert not missing


def test_the_two_cudas_never_meet() -> None:
    """By pip they are extras that torch's bound keeps apart, by uv groups too, of which a clone has CUDA 12's."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    assert "torch<2.11" in extras["cuda12"]
    assert "torch>=2.11" in extras["cuda13"]
    assert not [line for line in pyproject["project"]["dependencies"] if "nvidia" in line]
    assert pyproject["tool"]["uv"]["default-groups"] == ["dev", "cuda12"]
    conflicts = {frozenset(map(tuple, map(dict.items, pair))) for pair in pyproject["tool"]["uv"]["conflicts"]}
    for one in ("extra", "group"):
        for other in ("extra", "group"):
            assert frozenset({((one, "cuda12"),), ((other, "cuda13"),)}) in conflicts
