"""Nearest neighbours: those of a plain matrix of similarities; their files and their picture."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from drawn import draw_images, shard_images
from PIL import Image
from torch.nn.functional import normalize

import coma
from coma.embedding import neighbours as module
from coma.embedding.neighbours import find_neighbours
from coma.errors import DataError, UsageError

FEW = {"untrained": True, "batch_size": 8, "image_size": 64}


@pytest.mark.parametrize(("rows", "columns"), [(1024, 2**15), (7, 5), (64, 3)])
def test_they_are_those_of_the_whole_matrix(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    monkeypatch.setattr(module, "_COLUMNS", columns)
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3
    found = find_neighbours(vectors, 4)
    similarity = normalize(vectors, dim=1) @ normalize(vectors, dim=1).T
    similarity.fill_diagonal_(-torch.inf)
    expected = similarity.topk(4, dim=1)
    assert torch.equal(found.rows, expected.indices)
    assert torch.allclose(found.similarity, expected.values, atol=1e-6)
    assert torch.allclose(found.closeness, expected.values.mean(dim=1), atol=1e-6)


def test_few_images_have_few_neighbours_and_copies_are_duplicates() -> None:
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.1]])
    found = find_neighbours(vectors, 10)
    assert found.rows.shape == (5, 4)
    assert found.rows[0, 0] == 1
    assert [pair[:2] for pair in found.duplicates(0.9)] == [(0, 1), (2, 3)]
    assert found.duplicates(0.9)[0][2] == pytest.approx(1.0)
    assert found.outliers(1) == [4]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images, of which one is there twice in another format, and one is black."""
    folder = draw_images(
        tmp_path_factory.mktemp("like") / "photographs", 14, classes=("a", "b"), size=(90, 70), smooth=True
    )
    Image.open(folder / "a" / "0.jpg").save(folder / "b" / "copy.png")
    Image.new("RGB", (80, 80)).save(folder / "b" / "black.png")
    return folder


@pytest.mark.parametrize("sharded", [False, True])
def test_what_lies_near_what_is_written_and_drawn(sharded: bool, photographs: Path, tmp_path: Path) -> None:
    source = shard_images(photographs, tmp_path / "data") if sharded else photographs
    out = tmp_path / "features.parquet"
    query = "a/0.jpg"
    result = coma.embed("test_resnet", source, out, neighbours=3, duplicates_above=0.9999, query=query, **FEW)
    paths = result.paths()
    table = pq.read_table(result.neighbours)
    assert table["path"].to_pylist() == paths
    assert table["neighbours"].type.list_size == 3
    nearest = dict(zip(paths, (paths[rows[0]] for rows in table["neighbours"].to_pylist()), strict=True))
    assert nearest["a/0.jpg"] == "b/copy.png"
    assert nearest["b/copy.png"] == "a/0.jpg"
    assert {"a/0.jpg", "b/copy.png"} in [set(pair[:2]) for pair in result.closest]
    pairs = pq.read_table(result.duplicates).to_pylist()
    assert len(pairs) == result.pairs
    assert all(paths[row["row"]] == row["path"] and row["similarity"] >= 0.9999 for row in pairs)
    closeness = np.array(table["mean_similarity"].to_pylist())
    assert result.outliers[0][0] == paths[int(closeness.argmin())]
    with Image.open(result.picture) as sheet:
        assert sheet.width > 4 * 128
        assert len(sheet.getcolors(2**24)) > 1000
    before = out.stat().st_mtime_ns
    again = coma.embed("test_resnet", source, out, neighbours=2, duplicates_above=1, **FEW)
    assert out.stat().st_mtime_ns == before
    assert pq.read_table(again.neighbours)["neighbours"].type.list_size == 2
    with pytest.raises(UsageError, match=r"--query a/1000.jpg: no embedded image has this path or key"):
        coma.embed("test_resnet", source, out, neighbours=2, query="a/1000.jpg", **FEW)


def test_one_image_has_no_neighbours(tmp_path: Path) -> None:
    draw_images(tmp_path / "one", 1)
    with pytest.raises(DataError, match="holds one image alone"):
        coma.embed("test_resnet", tmp_path / "one", tmp_path / "features.parquet", neighbours=2, **FEW)
