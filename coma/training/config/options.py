"""What a user asks of `coma pretrain`: a frozen dataclass, validated once, when made; and what every run shares."""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from coma.errors import UsageError

TRACKERS = ("wandb", "mlflow")


@dataclass(frozen=True, kw_only=True)
class RunConfig(ABC):
    """What every run may be asked for; None is derived from the data and the machine (`resolve.resolve`).

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    command: ClassVar[str]
    """Of `coma`, by which a launcher starts its processes."""
    default_epochs: ClassVar[float] = 100.0
    betas: ClassVar[tuple[float, float]]
    """AdamW's, unless the DeepSpeed configuration has its own."""

    data: Path | str | None = None
    """Sharded data set, its folder or its URL; None: the one found in the current folder."""
    image_size: int | None = 224
    """Side of the square crop in pixels."""
    epochs: float | None = None
    """Passes over the data; None without `steps`: `default_epochs`."""
    steps: int | None = None
    batch_size: int | None = None
    """Images a step, over all devices."""
    base_lr: float = 6e-4
    """Peak learning rate at a batch of 256 images; scaled linearly with the batch."""
    weight_decay: float = 0.05
    """On matrices only."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up; None: a twentieth of the run."""
    seed: int = 0
    """Decides all that is drawn at random: initial weights, order, crops, views."""
    out: Path | None = None
    """Run folder; None: runs/`name`, or the next free name after it."""
    resume: Literal["auto", "never"] | str = "auto"
    save_every: int | None = None
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Epochs between evaluations; None: never."""
    log_to: str | None = None
    """Where figures go besides: wandb, mlflow, or both with a comma between them."""
    keep_last: int = 2
    """Checkpoints that are kept: the newest."""
    keep_every_epochs: int | None = None
    """Keep, besides, those at the end of every so many epochs for good."""
    stuck_after: float = 1800.0
    """Seconds in one phase of a step after which a run is ended as stuck; 0: never."""
    stop_after: int | None = None
    """Steps after which this session saves a checkpoint and leaves."""
    ds_config: str = "zero1"
    """A packaged DeepSpeed configuration's name, or a path."""
    devices: int | None = None
    """Processes to start on this machine; None: this one, or those a launcher has started."""
    hostfile: Path | None = None
    """DeepSpeed hostfile: start the run on these machines."""
    compile: bool = False
    """Compile the model with torch.compile."""
    decode: Literal["auto", "cpu", "gpu"] | str = "auto"
    """Where images are decoded; auto: on the device that trains."""
    workers: int | None = None
    """Decoding threads a process."""

    def __post_init__(self) -> None:
        """Refuse what no data and no machine could make right."""
        require(
            self.epochs is None or self.steps is None, "--epochs and --steps exclude each other: give one"
        )
        for flag, value, least in (
            ("--image-size", self.image_size, 1),
            ("--steps", self.steps, 1),
            ("--batch-size", self.batch_size, 1),
            ("--save-every", self.save_every, 1),
            ("--evaluate-every", self.evaluate_every, 1),
            ("--keep-last", self.keep_last, 1),
            ("--keep-every-epochs", self.keep_every_epochs, 1),
            ("--stop-after", self.stop_after, 1),
            ("--devices", self.devices, 1),
            ("--workers", self.workers, 1),
            ("--seed", self.seed, 0),
        ):
            require_at_least(flag, value, least)
        for flag, number in (("--epochs", self.epochs), ("--base-lr", self.base_lr)):
            require(
                number is None or (math.isfinite(number) and number > 0),
                f"{flag} is {number}; it must be above 0",
            )
        for flag, number in (
            ("--weight-decay", self.weight_decay),
            ("--warmup-epochs", self.warmup_epochs),
            ("--stuck-after", self.stuck_after),
        ):
            require(
                number is None or (math.isfinite(number) and number >= 0),
                f"{flag} is {number}; it must be 0 or more",
            )
        for flag, word, words in (
            ("--resume", self.resume, ("auto", "never")),
            ("--decode", self.decode, ("auto", "cpu", "gpu")),
        ):
            require_one_of(flag, word, words)
        for name in self.trackers:
            require(
                name in TRACKERS,
                f"--log-to {name}: it must be {' or '.join(TRACKERS)}, or both, with a comma",
            )
        require(
            self.devices is None or self.hostfile is None,
            "--devices starts processes on this machine and --hostfile on those of the file: give one",
        )

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the run folder, if none is given."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log_to`."""
        return tuple(name.strip() for name in self.log_to.split(",")) if self.log_to else ()

    def identity(self) -> dict[str, Any]:
        """Return, by flag, what makes two commands the same run; the rest of it is in the resolved."""
        return {
            "--image-size": self.image_size,
            "--seed": self.seed,
            "--base-lr": self.base_lr,
            "--weight-decay": self.weight_decay,
        }

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> Self:
        """Make a configuration of a command's options, which have its fields' names, each of them, and others."""
        return cls(**{field.name: options[field.name] for field in dataclasses.fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; paths as strings."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Make a configuration from `to_json`'s fields."""
        paths = {
            field.name: Path(fields[field.name])
            for field in dataclasses.fields(cls)
            if "Path" in str(field.type)
            and fields.get(field.name) is not None
            and "://" not in fields[field.name]
        }
        return cls(**{**fields, **paths})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration that `save` wrote."""
        return cls.from_json(json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Write the configuration as JSON, for the processes of a launcher to read."""
        path.write_text(json.dumps(self.to_json(), indent=2))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """A pre-training run as asked for."""

    command: ClassVar[str] = "pretrain"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)

    image_size: int = 224
    model: str = "dyvit_base"
    method: Literal["coma", "independent", "mae"] | str = "coma"
    views: int = 2
    """Views of each image; `mae` has one."""
    start_size: int | None = None
    """Side of the crop at the start of the run, which grows to `image_size`; None: that all along."""
    patch_size: int | None = None
    """Side of a patch in pixels; None: the model's own."""
    init: Path | None = None
    """An export whose weights the run starts from; None: from random ones."""

    def __post_init__(self) -> None:
        """Refuse what no data and no machine could make right."""
        super().__post_init__()
        for flag, value, least in (
            ("--views", self.views, 1),
            ("--start-size", self.start_size, 1),
            ("--patch-size", self.patch_size, 1),
        ):
            require_at_least(flag, value, least)
        require_one_of("--method", self.method, ("coma", "independent", "mae"))
        require(
            self.start_size is None or self.start_size <= self.image_size,
            f"--start-size {self.start_size} is above --image-size {self.image_size}: crops grow, start with less",
        )

    @property
    def name(self) -> str:
        """The model's."""
        return self.model

    def identity(self) -> dict[str, Any]:
        """Return, by flag, what makes two commands the same run."""
        return {
            "--model": self.model,
            "--method": self.method,
            "--views": self.views,
            "--start-size": self.start_size,
            "--patch-size": self.patch_size,
            **super().identity(),
        }


def require_at_least(flag: str, value: int | None, least: int) -> None:
    """Raise UsageError for a value below `least`; None is none."""
    require(value is None or value >= least, f"{flag} is {value}; it must be at least {least}")


def require_one_of(flag: str, word: str, words: Sequence[str]) -> None:
    """Raise UsageError for another word."""
    require(word in words, f"{flag} is {word!r}; it must be {' or '.join(words)}")


def require(holds: bool, otherwise: str) -> None:
    """Raise UsageError, saying `otherwise`, if something does not hold."""
    if not holds:
        raise UsageError(otherwise)
