"""A run folder with a file that is lost, damaged or not finite: every command says so in one line, or does without."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn import draw_images, shard_images
from safetensors.torch import load_file, save_file

from coma.training import PretrainConfig, pretrain

CHECKPOINT = "checkpoints/step-000002"
WEIGHTS = f"{CHECKPOINT}/weights.safetensors"
FILES = ["config.json", "metrics.jsonl", "ledger.jsonl", "checkpoints", "checkpoints/latest", CHECKPOINT]
FILES += [f"{CHECKPOINT}/checkpoint.json", WEIGHTS, "previews", "previews/step-000000.png", "report.html"]

SMALL = "--model dyvit_nano --image-size 32 --patch-size 2 --batch-size 4 --workers 1 --steps 3".split()  # noqa: SIM905
READERS = {
    "report": ["run"],
    "knn": ["run", "data"],
    "look": ["run", "--count", "1"],
    "reconstruct": ["run", "--count", "1"],
    "export": ["run", "exported"],
    "inspect": ["run", "--step", "1"],
    "finetune": ["run", "data", "--epochs", "1", "--batch-size", "8", "--stop-after", "1", "--workers", "1"],
    "pretrain": ["data", *SMALL, "--out", "run"],
}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def holding(content: bytes) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        remove(path)
        path.write_bytes(content)

    return replace


def half(path: Path) -> None:
    if path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def link_to_itself(path: Path) -> None:
    remove(path)
    path.symlink_to(path.name)


DAMAGES = {
    "lost": remove,
    "empty": holding(b""),
    "half": half,
    "bytes": holding(b"\xff\xfe\0\x80" * 9),
    "list": holding(b"[]\n"),
    "nothing": holding(b"null\n"),
    "nested": holding(b"[" * 99_999),
    "other": holding(b'{"config": {"model": 3}, "resolved": {}, "files": 3, "step": "x"}\n'),
    "folder": folder,
    "link": link_to_itself,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and a run of two steps of three."""
    place = tmp_path_factory.mktemp("whole")
    source = draw_images(place / "photos", 16, classes=("train/a", "train/b", "val/a", "val/b"))
    data = shard_images(source, place / "data")
    options = {"model": "dyvit_nano", "image_size": 32, "patch_size": 2, "batch_size": 4, "workers": 1}
    pretrain(PretrainConfig(data=data, out=place / "run", steps=3, stop_after=2, **options))
    return place


@pytest.fixture
def here(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(whole / "run", tmp_path / "run")
    (tmp_path / "data").symlink_to(whole / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(done) -> None:
    """Either all is well, or there is one line, and no traceback (which would have left `main` as an exception)."""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code in (0, 1, 2, 3, 4)
    assert len(errors) == (1 if done.code else 0), done.err


LIKE_ANOTHER = ("empty", "list", "nested", "folder")
"""Damages that are read as one of the others is: as half a file, nothing, bytes, a link to itself."""
READ_BY_ALL = ("config.json", "checkpoints", "checkpoints/latest", f"{CHECKPOINT}/checkpoint.json", WEIGHTS)
EVERY = [(command, file) for command in ("report", "export", "inspect") for file in FILES]
EVERY += [(command, file) for command in ("knn", "look", "reconstruct") for file in READ_BY_ALL]


@pytest.mark.parametrize(("command", "file"), EVERY)
@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=pytest.mark.slow if name in LIKE_ANOTHER else ()) for name in DAMAGES]
)
def test_a_damaged_file_costs_one_line(here: Path, coma, file: str, damage: str, command: str) -> None:
    DAMAGES[damage](here / "run" / file)
    one_line(coma(command, *READERS[command]))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_a_damaged_file_costs_one_line_in_training(here: Path, coma, file: str, damage: str, command: str) -> None:
    DAMAGES[damage](here / "run" / file)
    one_line(coma(command, *READERS[command]))


@pytest.mark.parametrize("command", ["knn", "look", "reconstruct", "export", "finetune"])
def test_weights_that_do_not_say_which_is_newest_are_named(here: Path, coma, command: str) -> None:
    (here / "run/checkpoints/latest").unlink()
    done = coma(command, *READERS[command])
    assert done.code == 3
    assert f"lost or damaged: name one, like run/{CHECKPOINT}" in done.err


@pytest.mark.parametrize("command", ["knn", "probe", "look", "reconstruct", "export", "finetune"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e38])
def test_what_is_not_finite_is_said_with_the_file_and_exit_code_4(here: Path, coma, command: str, value: float) -> None:
    """Weights of 1e38 are finite, and what is computed with them is not."""
    weights = {name: torch.full_like(tensor, value) for name, tensor in load_file(here / "run" / WEIGHTS).items()}
    save_file(weights, here / "run" / WEIGHTS)
    (here / "run" / CHECKPOINT / "checkpoint.json").unlink()  # it has the hash of the others
    done = coma(command, *READERS.get(command, READERS["knn"]))
    if value == 1e38 and command in ("export", "finetune"):
        return
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 4
    assert CHECKPOINT in line
    assert "not finite" in line
