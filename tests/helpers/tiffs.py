"""TIFFs of kinds that PIL does not write: any number of channels, planes, tiles, types of samples, further pages."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_KINDS = {"u": 1, "i": 2, "f": 3, "c": 6}
_TYPES = {"H": 3, "I": 4, "Q": 16}
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # photometric → channels that it names; 1 for others
_DEFLATE = 8


def tiff_bytes(
    pixels: npt.NDArray[Any],
    photometric: int = 2,
    planes: int = 1,
    extra: Sequence[int] | None = None,
    compression: int = 1,
    tile: int | None = None,
    order: str = "<",
    big: bool = False,
    more: Sequence[tuple[npt.NDArray[Any], int]] = (),
    tags: dict[int, int] | None = None,
    pack: Callable[[npt.NDArray[Any]], bytes] | None = None,
    rows: int | None = None,
) -> bytes:
    """Return `pixels` [H, W] or [H, W, C] as a TIFF.

    `extra` is ExtraSamples (by default, unspecified ones as far as needed), `more` are further pages and the
    NewSubfileType of each, `tags` are further tags of one number each. `pack` makes the bytes of a block [h, w, c],
    which is in the file's byte order; `rows` are those of a strip.
    """
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + ("HHHQ" if big else "HI"), *_head(big)))
    pages = [(pixels, 0), *more]
    for number, (page, subfile) in enumerate(pages):
        page = page if page.ndim == 3 else page[..., None]
        height, width, channels = page.shape
        arrays = [
            np.ascontiguousarray(block).astype(page.dtype.newbyteorder(order))  # type: ignore[call-overload]
            for plane in ([page] if planes == 1 else np.split(page, channels, axis=2))
            for block in (_tiles(plane, tile) if tile else _strips(plane, rows or height))
        ]
        blocks = [array.tobytes() if pack is None else pack(array) for array in arrays]
        if compression == _DEFLATE and pack is None:
            blocks = [zlib.compress(block) for block in blocks]
        unnamed = [0] * (channels - _COLOURS.get(photometric, 1)) if extra is None else list(extra)
        wide = "Q" if big else "I"
        entries: dict[int, tuple[str, list[int]]] = {
            **{tag: ("I", [value]) for tag, value in {254: subfile, 256: width, 257: height, **(tags or {})}.items()},
            258: ("H", [page.dtype.itemsize * 8] * channels),
            259: ("H", [compression]),
            262: ("H", [photometric]),
            277: ("H", [channels]),
            284: ("H", [planes]),
            (324 if tile else 273): (wide, [0] * len(blocks)),
            (325 if tile else 279): ("I", [len(block) for block in blocks]),
            **({322: ("I", [tile]), 323: ("I", [tile])} if tile else {278: ("I", [rows or height])}),
            **({338: ("H", unnamed)} if unnamed else {}),
            339: ("H", [_KINDS[page.dtype.kind]] * channels),
        }
        inline, long_values = 8 if big else 4, bytearray()
        tail_at = len(out) + struct.calcsize("=Q" if big else "=H") + (20 if big else 12) * len(entries) + inline
        packed = {tag: struct.pack(f"{order}{len(values)}{code}", *values) for tag, (code, values) in entries.items()}
        at = tail_at + sum(len(raw) + len(raw) % 2 for raw in packed.values() if len(raw) > inline)
        offsets = [at + sum(len(block) for block in blocks[:i]) for i in range(len(blocks))]
        packed[324 if tile else 273] = struct.pack(f"{order}{len(offsets)}{wide}", *offsets)
        out += struct.pack(order + ("Q" if big else "H"), len(entries))
        for tag, (code, values) in sorted(entries.items()):
            raw = packed[tag]
            out += struct.pack(order + "HH" + wide, tag, _TYPES[code], len(values))
            out += (
                raw.ljust(inline, b"\0")
                if len(raw) <= inline
                else struct.pack(order + wide, tail_at + len(long_values))
            )
            long_values += raw + bytes(len(raw) % 2) if len(raw) > inline else b""
        data = b"".join(blocks) + bytes(sum(map(len, blocks)) % 2)
        last = number + 1 == len(pages)
        out += struct.pack(order + wide, 0 if last else at + len(data)) + long_values + data
    return bytes(out)


def _head(big: bool) -> tuple[int, ...]:
    return (43, 8, 0, 16) if big else (42, 8)


def _strips(plane: npt.NDArray[Any], rows: int) -> list[npt.NDArray[Any]]:
    return [plane[top : top + rows] for top in range(0, len(plane), rows)]


def _tiles(plane: npt.NDArray[Any], side: int) -> list[npt.NDArray[Any]]:
    height, width = plane.shape[:2]
    padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
    return [padded[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]
