"""Every command in README.md and docs/ is one that coma understands, and those that a small machine can run do."""

import io
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from drawn import draw_images
from masked import draw_pairs

import coma.runs.names as run_names
from coma.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("://", "--log-to", "--hostfile", "torchrun", "deepspeed", "srun", "lvd142m", "--init vit_", "--push")
"""In lines that need other machines, a store, the Hub, or what other tests make; they are parsed alone."""

TRIED = ("demo", "doctor")
"""Take their time, and tests of their own."""

SMALL_RUN = "--model dyvit_nano --image-size 64 --batch-size 8"
SMALLER: dict[str, str] = {
    "pretrain": f"{SMALL_RUN} --devices 1 --stop-after 1",
    "plan": f"{SMALL_RUN} --no-measure",
    "finetune": "--devices 1 --batch-size 8 --rand-augment 0 --stop-after 1",
}
"""Options added to a command's own; where it has them as well the last ones count."""


def lines_of(page: Path) -> list[str]:
    """The shell lines of a page, comments cut off."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def coma_arguments(line: str) -> list[str] | None:
    """What follows `coma` in a line, whatever starts it."""
    words = shlex.split(line)
    return words[words.index("coma") + 1 :] if "coma" in words else None


EVERY = [(page, line) for page in PAGES for line in lines_of(page) if coma_arguments(line) is not None]


@pytest.mark.parametrize(("page", "line"), EVERY, ids=[f"{page.stem}: {line}" for page, line in EVERY])
def test_it_is_understood(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file of options and the run that the pages name are there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("epochs: 100\n")
    (tmp_path / "runs" / "dyvit_base").mkdir(parents=True)
    (tmp_path / "runs" / "dyvit_base" / "config.json").write_text('{"config": {"model": "dyvit_base"}, "resolved": {}}')
    command: click.Command = typer.main.get_command(app)
    arguments, parent = coma_arguments(line), None
    while True:
        context = command.make_context(command.name, arguments, parent=parent)
        if not isinstance(command, click.Group):
            break
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        parent = context


def test_the_pages_have_commands() -> None:
    """None is lost to another kind of block."""
    assert {page.name for page, _ in EVERY} >= {"README.md", "recipes.md", "shards.md"}
    assert len(EVERY) > 25


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with folders of small images, and with tars of them, by the names that the pages use."""
    drawing = {"classes": ("class0", "class1"), "size": lambda number: (80 + number, 72), "smooth": True}
    for seed, source in enumerate(("imagenet", "photos")):
        draw_images(tmp_path / source, 24, seed=seed, **drawing)
    draw_images(tmp_path / "slides", 2, classes=("class0",), size=lambda _: (600, 530), smooth=True)
    draw_pairs(tmp_path / "scenes", 12, size=(80, 72))
    (tmp_path / "tars").mkdir()
    for label in (0, 1):
        with tarfile.open(tmp_path / "tars" / f"{label}.tar", "w") as tar:
            for image_path in sorted((tmp_path / "photos" / f"class{label}").iterdir()):
                tar.add(image_path, image_path.name)
                member = tarfile.TarInfo(f"{image_path.stem}.cls")
                member.size = 1
                tar.addfile(member, io.BytesIO(str(label).encode()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


FROM_THE_FIRST = ["README.md", "docs/recipes.md", "docs/shards.md"]
TAKEN_FOR_GRANTED = [
    "coma shard imagenet/",
    "coma pretrain imagenet-shards --out runs/dyvit_base",
    "coma export runs/dyvit_base exports/dyvit_base",
]
"""Other pages begin with a run that is done."""


@pytest.mark.parametrize(
    "page",
    [
        *("README.md", "docs/shards.md", "docs/training.md", "docs/embed.md"),
        *(pytest.param(page, marks=pytest.mark.slow) for page in ("docs/recipes.md", "docs/evaluate.md")),
    ],
)
def test_it_runs(page: str, here: Path, coma: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page's order, each with the data and runs that the lines before it made, on a small scale."""
    monkeypatch.setattr("coma.evaluation.dense.pixel_head.LEAST_STEPS", 20)
    monkeypatch.setattr("coma.evaluation.dense.pixel_head.PASSES", 2)
    ran = []
    before = [] if page in FROM_THE_FIRST else TAKEN_FOR_GRANTED
    for line in [*before, *lines_of(ROOT / page)]:
        arguments = coma_arguments(line)
        if arguments is None or any(word in line for word in ELSEWHERE) or arguments[0] in TRIED:
            continue
        run = re.search(r"--model (\w+)", line)
        if arguments[0] == "pretrain" and "--out" not in arguments:
            arguments += ["--out", f"runs/{run[1] if run else 'dyvit_base'}"]
        arguments = ["1" if word == "41203" else word for word in arguments]
        done = coma(*arguments, *shlex.split(SMALLER.get(arguments[0], "")))
        assert done.code == 0, (line, done.out, done.err)
        ran.append(arguments[0])
    assert len(ran) >= 4
    if page == "docs/shards.md":
        missing = [name for name in names_of("OUT") if not (here / "imagenet-shards" / name).exists()]
        assert missing == []


def names_of(folder: str) -> set[str]:
    """The files that the pages name in OUT or RUN, those with placeholders apart."""
    text = "".join(page.read_text() for page in PAGES)
    return {name for name in re.findall(rf"\b{folder}/(\w[\w./-]*\w)", text) if "N" not in name}


def test_the_pages_name_files_of_a_run_that_there_are() -> None:
    known = {value for name, value in vars(run_names).items() if name.endswith("_NAME")}
    known |= {run_names.step_sheet_path(Path("RUN"), 41203).name}
    named = names_of("RUN")
    assert named >= {"report.html", "metrics.jsonl"}
    assert {name.split("/")[0] for name in named} <= known
