"""Embedding as `coma embed` and `coma.embed` do it: the table, and what lies near what if that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from coma.embedding.embed import embed
from coma.embedding.images import open_images
from coma.embedding.options import EmbedOptions
from coma.embedding.report import compare
from coma.evaluation.device import choose_device

Progress = Callable[[str, int, int | None], None]
"""Called with the stage ("listing", "features", "neighbours"), what is done of it, and its total."""


def run_command(options: EmbedOptions, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Embed images, and compare them if `neighbours` are asked for; return what was written.

    Raises what `embed`, `open_images` and `compare` raise.
    """
    images = open_images(options, lambda done: progress("listing", done, None))
    made = embed(options, images, lambda done, total: progress("features", done, total))
    settings = made.settings
    result: dict[str, Any] = {
        "out": str(made.out),
        "table": str(made.table),
        "images": made.images,
        "set_aside": made.set_aside,
        "quarantine": None if made.quarantine is None else str(made.quarantine),
        "channels": made.channels,
        "map_shape": made.map_shape,
        "dtype": made.dtype,
        "splits": made.splits,
        "model": settings["model"],
        "weights": settings["weights"],
        "step": settings["step"],
        "image_size": settings["image_size"],
        "device": made.device,
        "processes": made.processes,
        "elapsed_s": round(made.elapsed_s, 3),
        "images_per_s": round(made.computed / made.elapsed_s, 2) if made.computed else None,
    }
    if options.neighbours is not None:
        likeness = compare(
            made.out,
            images,
            options.neighbours,
            above=options.duplicates_above,
            query=options.query,
            device=choose_device(options.device),
            progress=lambda done, total: progress("neighbours", done, total),
        )
        result |= {name: str(v) if hasattr(v, "joinpath") else v for name, v in asdict(likeness).items()}
    return result
