"""The content of one step of a run: which images it saw, in which crops and views.

All of it is computed from (data, seed, step), so any step can be asked for without replaying those before it,
without a checkpoint and without DeepSpeed.

Legend: B samples of a global batch, K views, U mask units, V_k visible units of view k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coma.errors import DataError, UsageError
from coma.pipeline import Stream
from coma.pipeline.crops import random_resized_crops
from coma.pipeline.faults import candidates
from coma.pipeline.order import Step, digest, digest_limbs
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.pipeline.views import partition_units
from coma.runs.lines import readable_lines
from coma.runs.names import CONFIG_NAME, LEDGER_NAME, METRICS_NAME
from coma.runs.read import (
    augmentation,
    build_model,
    network_of,
    preprocessing_of,
    read_config,
    run_data_sets,
    training_stream,
)
from coma.shards.describe.contact_sheet import class_captions
from coma.shards.files import is_remote
from coma.shards.manifest import Manifest, Mixture, load_manifest, read_mixture


@dataclass(frozen=True)
class Sample:
    """One image of the data set."""

    sample: int
    """Global id: its row in manifest.parquet, after those of the data sets before its own."""
    key: str
    shard: str
    source: str
    """Path in the folder that was sharded."""
    label: int | None
    class_name: str | None
    data_set: str | None = None
    """Name of its data set in a mixture; None for a run on one."""

    @property
    def class_text(self) -> str:
        """The class's name, or its number if it has none; empty without a label."""
        return self.class_name or ("" if self.label is None else str(self.label))


@dataclass(frozen=True)
class Window:
    """A crop in pixels of the displayed image, from its upper left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Row:
    """One place of a batch."""

    asked: Sample
    """The sample that the order of the data asks for."""
    epoch: int
    """The epoch, counted from 0, for which it is asked."""
    crop: Window
    """Crop of the image that was shown."""
    flipped: bool
    """Whether left and right are swapped."""
    turned: int
    """Degrees by which it is turned counter-clockwise after that: 0, 90, 180 or 270."""
    views: tuple[tuple[int, ...], ...]
    """The mask units that each view sees, ascending raster indices from 0."""
    substitute: Sample | None = None
    """What was shown instead, if the run could not read or decode the image."""
    reason: str | None = None
    """The reason why the image that was asked for could not be shown."""

    @property
    def shown(self) -> Sample:
        """The image that the network saw."""
        return self.substitute or self.asked


@dataclass(frozen=True, eq=False)
class StepContents:
    """The global batch of one step of a run."""

    run: Path
    step: int
    """Number of the step, counted from 1."""
    steps: int
    """Number of steps of the whole run."""
    image_size: int
    """Side of the crops in pixels."""
    units: int
    """U, the mask units of an image."""
    rows: tuple[Row, ...]
    """[B] in the order of the batch."""
    batch_digest: str
    """Digest of the sample ids computed here."""
    recorded_digest: str | None
    """The digest in metrics.jsonl; None for a step that the run has not taken, or whose line is lost."""
    manifest: Manifest = field(repr=False)
    preprocessing: Preprocessing = DEFAULT
    """How the run normalises its images."""
    show_channels: str | None = None
    """Channels that its previews show as red, green and blue; None: the first ones."""

    @property
    def data(self) -> list[str]:
        """Places of the data sets, one or several."""
        return [str(part.folder) for part in self.manifest.parts]

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Mask units that each of the K views sees, in every image: one view for MAE."""
        return tuple(map(len, self.rows[0].views))

    @property
    def epochs(self) -> float:
        """Fractional epoch after this step, as in metrics.jsonl."""
        return self.step * len(self.rows) / len(self.manifest)

    @property
    def matches(self) -> bool | None:
        """Whether these are the samples that the run saw; None if it left no record."""
        return None if self.recorded_digest is None else self.recorded_digest == self.batch_digest

    @property
    def substituted(self) -> int:
        """Number of images that were replaced by a substitute."""
        return sum(row.substitute is not None for row in self.rows)

    def check(self) -> None:
        """Raise DataError if the run recorded other samples."""
        if self.matches is False:
            raise DataError(
                f"these are not the images that {self.run} saw: step {self.step} has batch_digest "
                f"{self.recorded_digest} in {METRICS_NAME} and {self.batch_digest} here; "
                f"was its config.json edited, or another version of coma used?"
            )

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, `rows` in the order of the batch."""
        return {
            "run": str(self.run),
            "step": self.step,
            "steps": self.steps,
            "epoch": self.epochs,
            "data": self.data if len(self.data) > 1 else self.data[0],
            "fingerprint": self.manifest.fingerprint,
            "batch_size": len(self.rows),
            "image_size": self.image_size,
            "units": self.units,
            "view_sizes": self.view_sizes,
            "substituted": self.substituted,
            "batch_digest": self.batch_digest,
            "recorded_digest": self.recorded_digest,
            "matches": self.matches,
            "rows": [
                {
                    **asdict(row.asked),
                    "epoch": row.epoch,
                    "crop": asdict(row.crop),
                    "flipped": row.flipped,
                    "turned": row.turned,
                    "views": row.views,
                    "substitute": asdict(row.substitute) if row.substitute else None,
                    "reason": row.reason,
                }
                for row in self.rows
            ],
        }


def read_step(run: Path | str, step: int) -> StepContents:
    """Compute what was in a step of a run, counted from 1 as in metrics.jsonl.

    Raises:
        UsageError: the run has no such step.
        DataError: `run` is no run folder; its data are gone, or are others now.
    """
    run = Path(run)
    config, resolved = _read_run(run)
    if not 1 <= step <= resolved["steps"]:
        raise UsageError(f"{run} has {resolved['steps']} steps: step {step} is none of them")
    manifest = _data_of(run, resolved)
    batch_size, seed = resolved["batch_size"], int(config["seed"])
    options, split_units = _stream_and_views(config, resolved)
    with Stream(manifest, batch_size=batch_size, seed=seed, **options) as stream:
        plan = stream.plan(step)
        image_size = stream.sizes.at(plan.stop_sample)
        units_in_all = stream.sizes.units(image_size)

    asked = _samples(manifest, plan.samples)
    replaced = _substitutes(manifest, seed, plan, asked, list(readable_lines(run / LEDGER_NAME, step)))
    shown = plan.samples.copy()
    for place, (sample, _) in replaced.items():
        shown[place] = sample.sample
    crops = random_resized_crops(
        plan.samples,
        plan.epochs,
        manifest.width[shown],
        manifest.height[shown],
        seed=seed,
        scale=options["crop_scale"],
        flips=options["flips"],
        quarter_turns=options["quarter_turns"],
    )
    units = partition_units(
        torch.from_numpy(plan.samples), torch.from_numpy(plan.epochs), seed=seed, units=units_in_all
    )
    visible = [view.sort(dim=1).values.tolist() for view in split_units(units)]  # K of [B, V_k]

    rows = tuple(
        Row(
            asked[place],
            int(plan.epochs[place]),
            Window(left, top, width, height),
            bool(crops.flip[place]),
            0 if crops.quarters is None else 90 * int(crops.quarters[place]),
            tuple(tuple(view[place]) for view in visible),
            *replaced.get(place, (None, None)),
        )
        for place, ((top, left), (height, width)) in enumerate(
            zip(crops.start.tolist(), crops.shape.tolist(), strict=True)
        )
    )
    recorded = [line["batch_digest"] for line in readable_lines(run / METRICS_NAME, step) if "batch_digest" in line]
    return StepContents(
        run=run,
        step=step,
        steps=resolved["steps"],
        image_size=image_size,
        units=units_in_all,
        rows=rows,
        batch_digest=digest(digest_limbs(plan.samples.tolist())),
        recorded_digest=recorded[-1] if recorded else None,
        manifest=manifest,
        preprocessing=preprocessing_of({"resolved": resolved}),
        show_channels=config.get("show_channels"),
    )


def steps_of(run: Path | str) -> int:
    """Return the number of steps of a whole run; DataError if `run` is no run folder."""
    run = Path(run)
    return int(_read_run(run)[1]["steps"])


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    content = read_config(run)
    config, resolved = content["config"], content.get("resolved")
    if not isinstance(resolved, dict) or not {"data", "fingerprint", "steps", "batch_size"} <= resolved.keys():
        raise DataError(f"{run / CONFIG_NAME} does not describe a run of `coma pretrain`")
    return config, resolved


def _stream_and_views(
    config: dict[str, Any], resolved: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[Tensor], list[Tensor]]]:
    """The arguments of a run's stream, and what splits `units` [B, U] into those that each view sees.

    In fine-tuning there is one view, which sees all units.
    """
    if (network := resolved.get("network")) is not None:
        options = {
            "views": 1,
            "unit_size": network["unit_size"],
            "image_size": network["image_size"],
            **augmentation(config),
            "preprocessing": preprocessing_of({"resolved": resolved}),
        }
        return options, lambda units: [units]
    with torch.device("meta"):  # its sizes are wanted, not its weights
        model = build_model(network_of({"config": config, "resolved": resolved}))
    steps = resolved["segments"][0]["end"] if "segments" in resolved else resolved["steps"]  # before it was extended
    options = training_stream(model, config, steps * resolved["batch_size"])
    return options, lambda units: model.split_units(units)[0]


def _data_of(run: Path, resolved: dict[str, Any]) -> Manifest:
    """The manifest of the run's data; DataError if they are gone or have changed since."""
    for data in run_data_sets(run):
        if not is_remote(data) and not data.is_dir():
            raise DataError(
                f"the data of {run} are not at {data} any more: put them back there, or a link to where they are"
            )
    several = isinstance(resolved["data"], list)
    manifest = read_mixture(resolved["data"], read=load_manifest) if several else load_manifest(data)
    recorded = [each["fingerprint"] for each in resolved.get("sources") or ()]
    parts = zip(manifest.parts, recorded, strict=False)  # recorded of a mixture only
    for data_set, fingerprint in [*parts, (manifest, resolved["fingerprint"])]:
        if data_set.fingerprint != fingerprint:
            raise DataError(
                f"{data_set.place} is not what {run} was trained on: its fingerprint is {data_set.fingerprint}, "
                f"the run's {fingerprint}; put the run's data back there"
            )
    if isinstance(manifest, Mixture):  # the ledger has the names that they had when the run began
        return replace(manifest, names=tuple(each["name"] for each in resolved["sources"]))
    return manifest


def _samples(manifest: Manifest, ids: Sequence[int] | np.ndarray[Any, Any]) -> list[Sample]:
    if isinstance(manifest, Mixture):
        return _of_members(manifest, np.asarray(ids, np.int64))
    names = class_captions(manifest)
    labels = [None] * len(ids) if manifest.label is None else manifest.label[ids].tolist()
    columns = zip(ids, manifest.keys(ids), manifest.sources(ids), labels, strict=True)
    return [
        Sample(
            int(sample),
            key,
            manifest.shards[int(manifest.shard_id[sample])],
            source,
            label,
            names[label] if names is not None and label is not None else None,
        )
        for sample, key, source, label in columns
    ]


def _of_members(mixture: Mixture, ids: np.ndarray[Any, Any]) -> list[Sample]:
    """The samples of a mixture, each with the name of its data set and that one's class."""
    samples: dict[int, Sample] = {}
    numbers = mixture.source_of(ids)
    for number, (member, first) in enumerate(zip(mixture.members, mixture.first_samples, strict=True)):
        rows = np.unique(ids[numbers == number]) - first
        for sample in _samples(member, rows) if len(rows) else ():
            samples[sample.sample + first] = replace(
                sample, sample=sample.sample + first, data_set=mixture.names[number]
            )
    return [samples[sample] for sample in ids.tolist()]


def _substitutes(
    manifest: Manifest, seed: int, plan: Step, asked: Sequence[Sample], ledger: Sequence[dict[str, Any]]
) -> dict[int, tuple[Sample, str]]:
    """The substitutes that the ledger records, each with the reason, by place in the batch.

    The ledger names a substitute by its key alone, so it is looked up among the samples that the stream would try.
    """
    substitutes = {}
    for place, sample in enumerate(asked):
        for line in ledger:
            recorded = tuple(line.get(name) for name in ("key", "shard", "data_set"))
            if recorded != (sample.key, sample.shard, sample.data_set):
                continue
            tried = list(candidates(manifest, seed, int(plan.epochs[place]), sample.sample))
            for key, candidate in zip(manifest.keys(tried), tried, strict=True):
                if key == line.get("substitute"):
                    substitutes[place] = (_samples(manifest, [candidate])[0], str(line.get("reason")))
                    break
    return substitutes
