"""Embedding: the features of all images of a set by a frozen backbone, into one table.

Images are cut into parts of whole batches, whatever the number of processes; a killed command goes on with the parts
that are missing, and its table is the same to the last byte.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from coma.embedding.images import ImageSet
from coma.embedding.job import Computation, EmbedJob
from coma.embedding.options import EmbedOptions
from coma.embedding.parts import SPOOL_NAME, Part, WorkFolder, cut, difference
from coma.embedding.table import Shape, Written, quarantine_of, read_settings, read_written, table_of, write_table
from coma.errors import ComaError, UsageError, in_words
from coma.evaluation.extraction.processes import BackboneName, Processes, choose_processes, lending, run_on, shares
from coma.evaluation.maps import map_size, vectors, vectors_and_maps
from coma.exports.backbone import Backbone
from coma.installed.versions import coma_version
from coma.pipeline.preprocessing import check_fits
from coma.shards.files import without_credentials
from coma.shards.manifest.quarantine import reason_kind
from coma.shards.sources.listing import counted_images
from coma.shards.sources.parquet.spool import remove_spool, spool

logger = logging.getLogger(__name__)

_PREPARED = ("mean", "std", "crop_fraction", "interpolation", "squash")
"""What a table keeps of how its images were prepared."""

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""


@dataclass(frozen=True)
class Embedded:
    """What `coma embed` made."""

    out: Path
    table: Path
    images: int
    set_aside: int
    quarantine: Path | None
    channels: int
    map_shape: tuple[int, int, int] | None
    dtype: str
    splits: dict[str, int]
    settings: dict[str, Any]
    device: str
    processes: int
    elapsed_s: float
    computed: int
    """Number of images whose features were computed by this call."""


def embed(options: EmbedOptions, images: ImageSet, progress: Progress | None = None) -> Embedded:
    """Write the features of images to a table, or go on where an earlier call was stopped.

    Raises:
        DataError: the model or the images are missing or damaged, or no image is good.
        UsageError: an option does not fit, or OUT or its work folder is of other settings.
        DivergedError: weights or features are not finite.
        ComaError: OUT cannot be written.
    """
    begun_s = time.monotonic()
    processes = choose_processes(options.devices, options.device)
    name = BackboneName(options.model, options.image_size, options.untrained)
    backbone = name.load("cpu" if len(processes) > 1 else processes.devices[0])
    _check_images(backbone, images)
    shape = _shape_of(backbone, options)
    settings = _settings(options, images, backbone, shape, processes)
    out = default_out(images, backbone) if options.out is None else options.out
    if options.out is None:
        logger.info("OUT: %s", out)
    refuse_other(out, settings, overwrite=options.overwrite)
    folder, told = WorkFolder(out), progress or (lambda *_: None)
    if out.exists() and folder.settings() is None and read_settings(table_of(out)) == settings:
        logger.info("%s is complete already: nothing to do", out)
        return _described(out, read_written(out), shape, settings, processes, begun_s, 0)
    out.parent.mkdir(parents=True, exist_ok=True)
    splits = ", ".join(f"{section.split} ({counted_images(len(section))})" for section in images.sections)
    logger.info("embedding split%s %s with %s", "s"[: len(images.sections) > 1], splits, backbone.name)
    parts = cut([len(section) for section in images.sections], options.batch_size, shape.bytes_per_image)
    try:
        with folder.held(settings, overwrite=options.overwrite) as work:
            done = [part for part in parts if (work / part.name).is_file()]
            if done:
                logger.info("resuming: %d of %d parts are done", len(done), len(parts))
            missing = [part for part in parts if part not in done]
            if missing:
                computation = Computation(
                    backbone=replace(name, model=_absolute(options.model)),
                    patches=options.patches,
                    stride=options.stride,
                    half=options.half,
                    batch_size=options.batch_size,
                    processes=processes,
                    work=work.absolute(),
                )
                _compute(computation, images, missing, backbone, told)
            written = write_table(out, images, parts, work, shape, settings)
            folder.remove()
    except KeyboardInterrupt:
        logger.warning("stopped; the same command goes on where it was")
        raise
    except OSError as error:
        raise ComaError(f"{in_words(error)}; what is done is kept, and the same command goes on") from error
    _tell_set_aside(out, written)
    computed = sum(part.stop - part.start for part in missing)
    return _described(out, written, shape, settings, processes, begun_s, computed)


def _described(
    out: Path,
    written: Written,
    shape: Shape,
    settings: dict[str, Any],
    processes: Processes,
    begun_s: float,
    computed: int,
) -> Embedded:
    return Embedded(
        out=out,
        table=table_of(out),
        images=written.images,
        set_aside=len(written.set_aside),
        quarantine=quarantine_of(out) if written.set_aside else None,
        channels=shape.channels,
        map_shape=shape.map_shape,
        dtype=shape.dtype,
        splits=written.splits,
        settings=settings,
        device=processes.kind,
        processes=len(processes),
        elapsed_s=time.monotonic() - begun_s,
        computed=computed,
    )


def default_out(images: ImageSet, backbone: Backbone) -> Path:
    """Return `IMAGES-MODEL.parquet` in the current folder."""
    return Path(f"{images.name}-{backbone.name}.parquet")


def refuse_other(out: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse to replace a file that is no table of these settings, unless that is asked for. Raises UsageError."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name a file in it, like {out / 'features.parquet'}")
    for path in {out, table_of(out)}:
        if overwrite or not path.exists():
            continue
        before = read_settings(table_of(out))
        if before is None:
            raise UsageError(f"{path} was not written by `coma embed`: name another OUT, or give --overwrite")
        if before != settings:
            raise UsageError(
                f"{path} is of {difference(before, settings)}: name another OUT, or give --overwrite to replace it"
            )


def _compute(
    computation: Computation, images: ImageSet, missing: Sequence[Part], backbone: Backbone, progress: Progress
) -> None:
    """Compute the parts that are missing, on all processes."""
    processes = computation.processes
    total = len(images)
    done = total - sum(part.stop - part.start for part in missing)
    progress(done, total)

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    listing = images.listing
    if listing is not None and listing.image_column is not None:
        logger.info("unpacking the images of parquet rows")
        listing = spool(listing, computation.work / SPOOL_NAME)
        chosen = {section.split for section in images.sections}
        named = {split.name: split for split in listing.splits if split.name in chosen}
        sections = tuple(replace(section, listing=named[section.split]) for section in images.sections)
        images = replace(images, sections=sections, listing=listing)
    jobs = list(_jobs(computation, images, missing))
    with lending(computation.backbone, processes.here(), backbone):
        for _ in run_on(processes, jobs, count):
            pass
    remove_spool(computation.work / SPOOL_NAME)


def _jobs(computation: Computation, images: ImageSet, missing: Sequence[Part]) -> Iterator[EmbedJob]:
    """Yield jobs of consecutive parts, a few for each process."""
    for share in shares(len(missing), computation.processes):
        run: list[Part] = []
        for part in [missing[place] for place in share]:
            if run and (part.number != run[-1].number + 1 or part.section != run[-1].section):
                yield _job(computation, images, run)
                run = []
            run.append(part)
        if run:
            yield _job(computation, images, run)


def _job(computation: Computation, images: ImageSet, parts: Sequence[Part]) -> EmbedJob:
    section = images.sections[parts[0].section]
    if section.manifest is not None:
        return EmbedJob(computation, tuple(parts), section.manifest.folder, None)
    assert images.listing is not None
    assert section.listing is not None
    listed = tuple(section.listing.image(i) for i in range(parts[0].start, parts[-1].stop))
    return EmbedJob(computation, tuple(parts), images.listing.root.absolute(), listed)


@torch.inference_mode()
def _shape_of(backbone: Backbone, options: EmbedOptions) -> Shape:
    """Return the shape of an image's features, by embedding an empty image."""
    size = backbone.image_size
    if options.stride is not None:
        map_size(size, options.stride)
    device = next(backbone.module.parameters()).device
    empty = torch.zeros(1, backbone.preprocessing.channels, size, size, device=device)
    if not options.patches:
        return Shape(vectors(backbone.module, empty).shape[1], None, options.half)
    pooled, maps = vectors_and_maps(backbone.module, empty, options.stride)
    _, channels, height, width = maps.shape
    return Shape(pooled.shape[1], (height, width, channels), options.half)


def _check_images(backbone: Backbone, images: ImageSet) -> None:
    """Refuse images of another kind than the backbone's. Raises UsageError."""
    wanted = backbone.preprocessing
    for section in images.sections:
        if section.manifest is not None:
            place = without_credentials(str(section.manifest.folder))
            check_fits(wanted, section.manifest.pixels, backbone.origin, place)
        elif not wanted.takes_rgb:
            raise UsageError(
                f"{backbone.origin} takes images of {wanted.kind}, and those that are not sharded are read as 8-bit "
                f"RGB: shard them with --channels {wanted.channels}, and embed the shards"
            )


def _settings(
    options: EmbedOptions, images: ImageSet, backbone: Backbone, shape: Shape, processes: Processes
) -> dict[str, Any]:
    """Return all that the features depend on."""
    like = backbone.preprocessing
    return {
        "model": backbone.name,
        "weights": "untrained" if options.untrained else backbone.origin,
        "weights_xxh3_64": backbone.digest(),
        "step": backbone.step,
        "data": images.name,
        "fingerprint": images.fingerprint,
        "changed": images.state,
        "splits": {section.split: len(section) for section in images.sections},
        "image_size": backbone.image_size,
        **{name: _plain(getattr(like, name)) for name in _PREPARED},
        **({} if like.takes_rgb else {"pixels": like.to_json()}),
        "dtype": shape.dtype,
        "channels": shape.channels,
        "map_shape": _plain(shape.map_shape),
        "batch_size": options.batch_size,
        "device": processes.kind,
        "versions": {"coma": coma_version(), "timm": version("timm"), "torch": version("torch")},
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _absolute(model: str) -> str:
    """Return the name of a model as a process in any folder can use it."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def _tell_set_aside(out: Path, written: Written) -> None:
    if written.set_aside:
        kinds = sorted({reason_kind(row["reason"]) for row in written.set_aside})
        logger.warning(
            "%s set aside (%s): %s",
            f"{counted_images(len(written.set_aside))} {'is' if len(written.set_aside) == 1 else 'are'}",
            ", ".join(kinds[:3]),
            without_credentials(str(quarantine_of(out))),
        )
