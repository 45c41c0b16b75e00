"""What lies near what in a table of vectors: its neighbours, near-duplicates and outliers as files and a picture.

Legend: N images, K neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from coma.embedding.images import ImageSet
from coma.embedding.neighbours import Neighbours, find_neighbours
from coma.embedding.sheet import Block, Cell, write_sheet
from coma.embedding.table import as_data_error, read_vectors, table_of
from coma.errors import DataError, UsageError
from coma.shards.files import replacing

logger = logging.getLogger(__name__)

_QUERIES, _SHOWN, _PAIRS, _LISTED = 6, 8, 3, 10


@dataclass(frozen=True)
class Likeness:
    """What lies near what."""

    neighbours: Path
    duplicates: Path | None
    """Table of near-duplicates; None if there are none."""
    pairs: int
    """Number of near-duplicate pairs."""
    closest: tuple[tuple[str, str, float], ...]
    """The closest of the pairs: two paths and their similarity."""
    outliers: tuple[tuple[str, float], ...]
    """Paths of the images farthest from all others, with their mean similarity to their neighbours."""
    picture: Path


def compare(
    out: Path,
    images: ImageSet,
    most: int,
    *,
    above: float,
    query: str | None,
    device: str,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Likeness:
    """Find the `most` nearest images of each in a table, write them beside it, and draw some.

    Raises:
        DataError: the table holds one image alone, or is damaged.
        UsageError: `query` is no image of the table.
    """
    with as_data_error(table_of(out)):
        table = pq.read_table(table_of(out), columns=["key", "path", "split"])
    paths: list[str] = table["path"].to_pylist()
    if len(paths) < 2:
        raise DataError(f"{out} holds one image alone, which has no neighbours")
    queries = _queries(query, paths, table["key"].to_pylist(), len(paths))
    vectors = torch.from_numpy(np.array(read_vectors(out), np.float32))
    found = find_neighbours(vectors, most, device=device, progress=progress)
    names = {kind: out.with_name(f"{out.stem}.{kind}") for kind in ("neighbours.parquet", "duplicates.parquet")}
    picture = out.with_name(f"{out.stem}.neighbours.png")
    _write_neighbours(names["neighbours.parquet"], table, found)
    pairs = found.duplicates(above)
    _write_pairs(names["duplicates.parquet"], paths, pairs)
    outliers = found.outliers(_LISTED)
    cells = list(zip(table["split"].to_pylist(), table["key"].to_pylist(), strict=True))
    write_sheet(images, _blocks(cells, found, queries, pairs, outliers), picture)
    return Likeness(
        neighbours=names["neighbours.parquet"],
        duplicates=names["duplicates.parquet"] if pairs else None,
        pairs=len(pairs),
        closest=tuple((paths[a], paths[b], similarity) for a, b, similarity in pairs[:_LISTED]),
        outliers=tuple((paths[row], float(found.closeness[row])) for row in outliers),
        picture=picture,
    )


def _queries(query: str | None, paths: list[str], keys: list[str], count: int) -> list[int]:
    """Return the rows whose neighbours are drawn."""
    if query is None:
        number = min(_QUERIES, count)
        return [place * count // number for place in range(number)]
    for names in (paths, keys, [Path(path).name for path in paths]):
        rows = [row for row, name in enumerate(names) if name == query]
        if rows:
            return rows[:_QUERIES]
    from coma.errors import did_you_mean

    close = did_you_mean(query, paths[:10_000])
    raise UsageError(f"--query {query}: no embedded image has this path or key" + (f": {close}" if close else ""))


def _write_neighbours(path: Path, table: pa.Table, found: Neighbours) -> None:
    most = found.rows.shape[1]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(found.rows.flatten().numpy(), pa.int64()), most)
    similarity = pa.FixedSizeListArray.from_arrays(pa.array(found.similarity.flatten().numpy()), most)
    columns = {
        "key": table["key"],
        "path": table["path"],
        "neighbours": rows,  # rows of this table, and of OUT
        "similarity": similarity,
        "mean_similarity": pa.array(found.closeness.numpy()),
    }
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file)


def _write_pairs(path: Path, paths: list[str], pairs: Sequence[tuple[int, int, float]]) -> None:
    """Write near-duplicates; without any, remove the list of an earlier table."""
    if not pairs:
        path.unlink(missing_ok=True)
        return
    columns: dict[str, Any] = {
        "path": [paths[a] for a, _, _ in pairs],
        "other_path": [paths[b] for _, b, _ in pairs],
        "row": pa.array([a for a, _, _ in pairs], pa.int64()),
        "other_row": pa.array([b for _, b, _ in pairs], pa.int64()),
        "similarity": pa.array([similarity for _, _, similarity in pairs], pa.float32()),
    }
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file)


def _blocks(
    cells: Sequence[tuple[str, str]],
    found: Neighbours,
    queries: Sequence[int],
    pairs: Sequence[tuple[int, int, float]],
    outliers: Sequence[int],
) -> list[Block]:
    """Return the lines of the sheet."""

    def line(row: int) -> tuple[Cell, ...]:
        near = zip(found.rows[row].tolist(), found.similarity[row].tolist(), strict=True)
        others = [Cell(cells[other], f"{similarity:.2f}") for other, similarity in list(near)[:_SHOWN]]
        return (Cell(cells[row], Path(cells[row][1]).name, query=True), *others)

    width = 1 + min(_SHOWN, found.rows.shape[1])
    blocks = [Block("Framed images, and those nearest to each by cosine similarity", tuple(map(line, queries)))]
    if pairs:
        per_line = max(1, width // 2)
        shown = pairs[: _PAIRS * per_line]
        lines = []
        for start in range(0, len(shown), per_line):
            lines.append(
                tuple(
                    Cell(cells[row], f"{similarity:.3f}")
                    for a, b, similarity in shown[start : start + per_line]
                    for row in (a, b)
                )
            )
        blocks.append(Block(f"Near-duplicates: the closest of {len(pairs):,} pairs, side by side", tuple(lines)))
    far = tuple(Cell(cells[row], f"{float(found.closeness[row]):.2f}") for row in outliers[:width])
    blocks.append(Block("Outliers: least mean similarity to their neighbours", (far,)))
    return blocks
