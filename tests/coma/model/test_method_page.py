"""docs/method.md and the package's reading order say what the code does, under the code's names."""

import ast
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import coma
import coma.model.attention
import coma.model.decoder
from coma.model.build import METHODS, build
from coma.model.coma import CoMA

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "method.md").read_text()
VARIANTS = [f"dyvit_{size}" for size in ("nano", "tiny", "small", "base", "large")]


def rows(first: str) -> list[list[str]]:
    """Cells of the page's table rows whose first cell matches."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return [row for row in lines if re.fullmatch(first, row[0])]


@pytest.fixture
def countable(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # the counter knows no fused kernel of the CPU
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    monkeypatch.setattr(coma.model.attention, "attend", attend)
    monkeypatch.setattr(coma.model.decoder, "attend", attend)


def macs(model: nn.Module, *inputs: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() / 2e9


def parameters(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def number(text: str) -> float:
    return float(text.split()[0])


# -- the page ----------------------------------------------------------------------


@pytest.mark.usefixtures("countable")
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_as_the_table_has_them(name: str) -> None:
    ((_, channels, depths, decoder, millions, encoder, train_2, train_4),) = rows(name)
    with torch.device("meta"):
        images, units = torch.empty(1, 3, 224, 224), torch.empty(1, 49, dtype=torch.long)
        backbone = timm.create_model(name, num_classes=0)
        assert parameters(backbone) == pytest.approx(number(millions), rel=0.005)
        assert macs(backbone, images) == pytest.approx(number(encoder), rel=0.015)
        for views, train in ((2, train_2), (4, train_4)):
            model = build(name, views=views)
            assert macs(model, images, units) == pytest.approx(number(train), rel=0.015)
    assert backbone.stage_dims == tuple(int(channels) * 2**s for s in range(4))
    assert ", ".join(str(len(stage.blocks)) for stage in backbone.stages) == depths
    assert f"{len(model.decoder.blocks)} x {model.decoder.norm.weight.numel()}" == decoder


@pytest.mark.parametrize("size", ["B", "L"])
def test_mae_costs_what_the_page_says(size: str) -> None:
    told = re.search(rf"ViT-{size}: ([\d.]+) M(?: parameters)?, ([\d.]+) G", PAGE)
    assert told
    with torch.device("meta"):
        model = build({"B": "vit_base_patch16_224", "L": "vit_large_patch16_224"}[size], "mae")
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # for the counter
        cost = macs(model, torch.empty(1, 3, 224, 224), torch.empty(1, 196, dtype=torch.long))
    assert parameters(model) == pytest.approx(float(told[1]), rel=0.001)
    assert cost == pytest.approx(float(told[2]), rel=0.005)


def test_symbols_are_those_of_the_legends() -> None:
    table = [row for row in rows(r"[A-Zp](, \w+)*|[A-Z]") if len(row) == 3]
    symbols = {symbol for row in table for symbol in row[0].split(", ")}
    assert symbols == {"B", "K", "U", "V", "W", "T", "P", "p", "N", "C", "G", "H_g", "D", "w", "M", "Q"}
    for names, _, place in table:
        docstring = ast.get_docstring(ast.parse((ROOT / place.strip("`")).read_text()))
        assert docstring
        legend = " " + docstring[docstring.index("B images") :]
        for name in names.split(", "):
            assert re.search(rf"[\s,]{name}[\s,]", legend), (name, place)


def test_methods_are_all_told_and_views_are_cut_as_told() -> None:
    methods = {row[0].strip("`") for row in rows(r"`[a-z]+`")}
    assert methods - {"method"} == set(METHODS)
    for views in (2, 4):
        with torch.device("meta"):
            assert f"{CoMA('dyvit_nano', views=views).view_sizes} for K" in re.sub(r"\s+", " ", PAGE)


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`((?:coma|pipeline|tests)/[\w/]+\.py)`", PAGE))
    assert len(named) >= 8
    assert not [path for path in named if not (ROOT / path).is_file()]
    assert not [path for path in re.findall(r"\]\(([\w./]+)\)", PAGE) if not (ROOT / "docs" / path).is_file()]


# -- the reading order ---------------------------------------------------------------


def reading_order() -> list[str]:
    """Modules in the order of the docstring of `coma.model`, `coma.pipeline.views` first."""
    assert coma.model.__doc__
    named = re.findall(r"^(\S+\.py) ", coma.model.__doc__, flags=re.MULTILINE)
    return [f"coma/model/{path}".replace("model/../", "") for path in named]


def test_each_file_of_the_reading_order_exists_and_opens_with_its_idea() -> None:
    order = reading_order()
    files = {f"coma/model/{file.name}" for file in (ROOT / "coma" / "model").glob("*.py")}
    assert sorted(order) == sorted(files - {"coma/model/__init__.py"} | {"coma/pipeline/views.py"})
    for path in order:
        assert ast.get_docstring(ast.parse((ROOT / path).read_text())), path


def test_nothing_is_needed_before_it_is_read() -> None:
    """Each file of the method imports only files above it."""
    order = reading_order()
    modules = [path.removesuffix(".py").replace("/", ".") for path in order]
    for i, path in enumerate(order):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                assert modules.index(node.module) < i, f"{path} needs {node.module}"
