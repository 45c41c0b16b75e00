"""Options of `coma pretrain`, and those that it shares with `coma finetune`: dataclasses, validated when made.

The command line is made of these fields (`coma.cli.from_options`), and RUN/config.json holds them under "config".
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from coma.errors import UsageError
from coma.runs.read import current_names
from coma.shards.option import identity_of, option, option_like, validate
from coma.shards.shares import named_sources

TRACKERS = ("wandb", "mlflow", "trackio")

# One for each panel of the help. A model with other options is another run.
model_option = partial(option, panel="Model", identity=True)
data_option, optimisation_option = partial(option, panel="Data"), partial(option, panel="Optimisation")
run_option, machine_option = partial(option, panel="Run"), partial(option, panel="Machine")


@dataclass(frozen=True, kw_only=True)
class RunConfig(ABC):
    """Options of every run; None is derived from the data and the machine (`resolve.resolve`).

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    command: ClassVar[str]
    """Command of `coma` by which a launcher starts its processes."""
    betas: ClassVar[tuple[float, float]]
    """AdamW's betas, unless the DeepSpeed configuration has its own."""
    default_epochs: ClassVar[float] = 100.0

    data: Path | str | tuple[str, ...] | None = option(
        None,
        help="Data set made by `coma shard`: a folder, or a URL (s3://...).",
        argument=True,
        shown_default="the one in the current folder",
    )
    image_size: int | None = data_option(
        None, help="Side of the square crops, in pixels.", metavar="PX", least=1, identity=True
    )
    crop_scale: float = data_option(
        0.2, help="Smallest share of an image's area that a crop shows.", above=0, most=1, identity=True
    )
    flips: Literal["horizontal", "none", "both"] = data_option(
        "horizontal",
        help="Flips of crops: left and right (horizontal), none, or also top and bottom (both).",
        identity=True,
    )
    quarter_turns: bool = data_option(
        False, help="Turn crops by quarters at random, for images that have no up.", identity=True
    )
    mean: str | None = data_option(
        None,
        help="Mean of each channel, by which images are normalised: of 8-bit images for values from 0 to 1, of others "
        "in their own units.",
        metavar="X,X,...",
        identity=True,
        shown_default="ImageNet's for 8-bit RGB, else the data's",
    )
    std: str | None = data_option(
        None,
        help="Standard deviation of each channel, as --mean.",
        metavar="X,X,...",
        identity=True,
        shown_default="as --mean",
    )
    clip_percentile: float | None = data_option(
        None,
        help="P: values below the P-th and above the (100 - P)-th percentile of their channel are clipped there.",
        metavar="P",
        least=0.1,
        below=50,
        identity=True,
        shown_default="no clipping",
    )
    decode: Literal["auto", "cpu", "gpu"] = data_option(
        "auto", help="Where images are decoded; auto: on the device that trains."
    )
    workers: int | None = data_option(
        None, help="Number of decoding threads per process.", least=1, shown_default="its share of the cores"
    )
    fault_budget: int | None = data_option(
        None,
        help="Number of damaged samples that a process replaces by others before the run ends.",
        least=0,
        shown_default="a thousandth of the data, at least 10",
    )
    epochs: float | None = optimisation_option(
        None, help="Number of passes over the data.", above=0, most=1e6, shown_default=f"{default_epochs:g}"
    )
    steps: int | None = optimisation_option(
        None, help="Number of steps, instead of --epochs.", least=1, most=10**12, instead_of="epochs"
    )
    batch_size: int | None = optimisation_option(
        None,
        help="Number of images per step, over all devices.",
        least=1,
        shown_default="256 on GPUs, 32 on a CPU, less for small data",
    )
    base_lr: float = optimisation_option(
        help="Peak learning rate for a batch of 256 images; it is scaled linearly with the batch.",
        above=0,
        identity=True,
    )
    weight_decay: float = optimisation_option(
        0.05, help="Weight decay, applied to matrices only.", least=0, identity=True
    )
    warmup_epochs: float | None = optimisation_option(
        None,
        help="Epochs of linear warm-up of the learning rate.",
        least=0,
        most=1e6,
        shown_default="a twentieth of the run",
    )
    schedule: Literal["cosine", "constant"] = optimisation_option(
        "cosine", help="Learning rate after the warm-up: half a cosine, or constant with a cooldown."
    )
    cooldown_epochs: float | None = optimisation_option(
        None,
        help="Last epochs, in which a constant learning rate falls.",
        least=0,
        most=1e6,
        shown_default="a fifth of the run",
    )
    seed: int = optimisation_option(
        0, help="Random seed for weights, sample order, crops and views.", least=0, below=2**63, identity=True
    )
    out: Path | None = run_option(None, help="Run folder.", metavar="RUN", shown_default="runs/MODEL[-NUMBER]")
    resume: Literal["auto", "never"] = run_option(
        "auto", help="auto: resume the unfinished run of the same command; never: start a new one."
    )
    extend: bool = run_option(False, help="Train the run in --out for longer: to more --epochs or --steps.")
    save_every: int | None = run_option(
        None, help="Steps between checkpoints.", least=1, shown_default="an epoch or a 50th of the run, at most 2000"
    )
    keep_last: int = run_option(2, help="Number of newest checkpoints to keep.", least=1)
    keep_every_epochs: int | None = run_option(
        None, help="Epochs between checkpoints that are kept for good.", least=1, shown_default="none"
    )
    stuck_after: float = run_option(
        1800.0, help="Seconds without progress after which the run ends as stuck; 0: never.", least=0
    )
    evaluate_every: int | None = run_option(
        None,
        help="Epochs between evaluations: 20-NN accuracy, if there are labels, mIoU of neighbours, if there are masks, "
        "and RankMe.",
        least=1,
        shown_default="never",
    )
    log_to: str | None = run_option(
        None,
        help="Experiment trackers, if installed, that get the metrics as well: wandb, mlflow, trackio.",
        metavar=",".join(TRACKERS),
        shown_default="none",
    )
    stop_after: int | None = run_option(
        None, help="Number of steps after which to save a checkpoint and leave.", least=1, shown_default="never"
    )
    ds_config: str = machine_option(
        "zero1",
        help="DeepSpeed configuration: zero0 to zero3, zero2_offload, zero3_offload, zero3_nvme, or a file.",
        metavar="NAME|PATH",
    )
    micro_batch_size: int | Literal["auto"] | None = machine_option(
        None,
        help="Images per forward pass on each device; auto: the most that fit in memory. The rest of the batch is "
        "accumulated.",
        metavar="N|auto",
        least=1,
        shown_default="a device's whole share of the batch",
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = machine_option(
        None,
        help="Number format of weights and activations.",
        shown_default="the configuration's, else bf16 on GPUs that have it, fp32",
    )
    grad_checkpointing: str = machine_option(
        "none",
        help="Stages to recompute in the backward pass instead of keeping their activations; all: the decoder too.",
        metavar="none|1,2|all",
    )
    devices: int | Literal["auto"] | None = machine_option(
        None,
        help="Number of processes to start on this machine, one per GPU; auto: one on each GPU.",
        metavar="N|auto",
        least=1,
        shown_default="1",
    )
    hostfile: Path | None = machine_option(
        None,
        help="DeepSpeed hostfile with the machines to run on.",
        metavar="FILE",
        shown_default="this machine",
        instead_of="devices",
    )
    compile: bool = machine_option(False, help="Compile the model with torch.compile: slower start, faster steps.")

    def __post_init__(self) -> None:
        """Refuse what no data and no machine could make right."""
        validate(self)
        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps exclude each other: give one")
        if self.cooldown_epochs is not None and self.schedule != "constant":
            raise UsageError("--cooldown-epochs goes with --schedule constant: add that, or leave it out")
        if self.extend and (self.out is None or (self.epochs is None and self.steps is None)):
            raise UsageError("--extend needs --out RUN, the run to train for longer, and --epochs or --steps")
        parse_stages(self.grad_checkpointing)
        for name in self.trackers:
            if name not in TRACKERS:
                raise UsageError(f"--log-to {name}: it must be {' or '.join(TRACKERS)}, or several, with commas")
        if self.devices is not None and self.hostfile is not None:
            raise UsageError("--devices starts processes on this machine and --hostfile on those of the file: give one")

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the run folder, if none is given."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log_to`."""
        return tuple(name.strip() for name in self.log_to.split(",")) if self.log_to else ()

    @property
    def checkpointed_stages(self) -> tuple[int, ...] | None:
        """The stages in `grad_checkpointing`, counted from 1; None: all, and the decoder."""
        return parse_stages(self.grad_checkpointing)

    def identity(self) -> dict[str, Any]:
        """Return, by flag, the options that make two commands the same run; the rest is in the `ResolvedRun`."""
        return identity_of(self)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; paths as strings."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Make a configuration from `to_json`'s fields, also those of an older version."""
        fields = current_names(fields)
        paths = {
            field.name: Path(fields[field.name])
            for field in dataclasses.fields(cls)
            if "Path" in str(field.type) and isinstance(fields.get(field.name), str) and "://" not in fields[field.name]
        }
        return cls(**{**fields, **paths})

    @property
    def crops_in_words(self) -> list[str]:
        """What is done to crops: their least size, and flips and turns that are not the usual ones."""
        return [
            f"crops of {100 * self.crop_scale:.3g}% or more",
            *([f"flips: {self.flips}"] if self.flips != "horizontal" else []),
            *(["quarter turns"] if self.quarter_turns else []),
        ]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration that `save` wrote."""
        return cls.from_json(json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Write the configuration as JSON, for the processes of a launcher to read."""
        path.write_text(json.dumps(self.to_json(), indent=2))


def parse_stages(text: str) -> tuple[int, ...] | None:
    """Read --grad-checkpointing: stages counted from 1, none of them for "none", None for "all".

    Raises:
        UsageError: it is something else.
    """
    if text in ("none", "all"):
        return () if text == "none" else None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise UsageError(f"--grad-checkpointing is {text!r}; it must be none, all, or numbers of stages, such as 1,2")
    return tuple(sorted({int(word) for word in words}))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Options of a pre-training run."""

    command: ClassVar[str] = "pretrain"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)

    data: Path | str | tuple[str, ...] | None = option_like(
        RunConfig,
        "data",
        help="Data set made by `coma shard`: a folder, or a URL (s3://...). Several are mixed, by the share after a "
        "colon (a-shards:0.7 b-shards:0.3), else as they have images.",
        several=True,
    )
    image_size: int = option_like(RunConfig, "image_size", 224)
    start_size: int | None = data_option(
        None,
        help="Side of the first crops, in pixels; they grow to --image-size, so that early steps cost less.",
        metavar="PX",
        least=1,
        identity=True,
        shown_default="--image-size",
    )
    model: str = model_option(
        "dyvit_base", help="Network: dyvit_nano, _tiny, _small, _base, _large, or a timm ViT.", metavar="NAME"
    )
    method: Literal["coma", "independent", "mae"] = model_option(
        "coma", help="Masking: complementary views (coma), or for comparison independently masked ones, or mae."
    )
    views: int = model_option(2, help="Number of views per image; mae has 1.", least=1)
    patch_size: int | None = model_option(
        None,
        help="Side of a patch, in pixels; small images need small ones.",
        metavar="PX",
        least=1,
        shown_default="the model's own",
    )
    init: Path | str | None = model_option(
        None,
        help="Weights that the run starts from: a run, an export, or a model of timm or the Hub (hf-hub:OWNER/NAME).",
        metavar="DIR|NAME",
        identity=False,  # what it holds is: `ResolvedRun.init_digest`
        shown_default="random weights",
    )
    base_lr: float = option_like(RunConfig, "base_lr", 6e-4)
    evaluate_on: Path | str | None = run_option(
        None,
        help="Data set made by `coma shard` to evaluate on, with --evaluate-every.",
        metavar="DATA",
        shown_default="the run's own, of several the first",
    )
    show_channels: str | None = run_option(
        None,
        help="Channels that previews show as red, green and blue, counted from 1, or one in grey; for images that are "
        "not RGB.",
        metavar="N,N,N",
        shown_default="1,2,3",
    )

    def __post_init__(self) -> None:
        """Refuse what no data and no machine could make right."""
        super().__post_init__()
        if self.data is not None and not isinstance(self.data, Path):
            sources = named_sources(self.data if isinstance(self.data, tuple | list) else [self.data])
            one = len(sources) == 1
            object.__setattr__(self, "data", sources[0].place if one else tuple(str(each) for each in sources))
        if self.evaluate_on is not None and self.evaluate_every is None:
            raise UsageError("--evaluate-on goes with --evaluate-every: add that, or leave it out")
        if self.start_size is not None and self.start_size > self.image_size:
            raise UsageError(
                f"--start-size {self.start_size} is above --image-size {self.image_size}: crops grow, start with less"
            )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model
