"""What a user asks of `coma pretrain`: one frozen dataclass, validated once, when made."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coma.errors import UsageError

DEFAULT_EPOCHS = 100.0
TRACKERS = ("wandb", "mlflow")


@dataclass(frozen=True)
class PretrainConfig:
    """A pre-training run as asked for; None is derived from the data and the machine (`plan.resolve`).

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    data: Path | str | None = None
    """Sharded data set, its folder or its URL; None: the one found in the current folder."""
    model: str = "dyvit_base"
    method: Literal["coma", "independent", "mae"] | str = "coma"
    views: int = 2
    """Views of each image; `mae` has one."""
    image_size: int = 224
    """Side of the square crop in pixels."""
    start_size: int | None = None
    """Side of the crop at the start of the run, which grows to `image_size`; None: that all along."""
    patch_size: int | None = None
    """Side of a patch in pixels; None: the model's own."""
    epochs: float | None = None
    """Passes over the data; None without `steps`: `DEFAULT_EPOCHS`."""
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
    """Decides the initial weights, the order of the samples, the crops and the views."""
    init: Path | None = None
    """An export whose weights the run starts from; None: from random ones."""
    out: Path | None = None
    """Run folder; None: runs/<model>, or the next free name after it."""
    resume: Literal["auto", "never"] | str = "auto"
    save_every: int | None = None
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Epochs after which nearest neighbours and RankMe are evaluated; None: never."""
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
        _require(
            self.epochs is None or self.steps is None, "--epochs and --steps exclude each other: give one"
        )
        for flag, value, least in (
            ("--views", self.views, 1),
            ("--image-size", self.image_size, 1),
            ("--start-size", self.start_size, 1),
            ("--patch-size", self.patch_size, 1),
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
            _require(value is None or value >= least, f"{flag} is {value}; it must be at least {least}")
        for flag, number in (("--epochs", self.epochs), ("--base-lr", self.base_lr)):
            _require(
                number is None or (math.isfinite(number) and number > 0),
                f"{flag} is {number}; it must be above 0",
            )
        for flag, number in (
            ("--weight-decay", self.weight_decay),
            ("--warmup-epochs", self.warmup_epochs),
            ("--stuck-after", self.stuck_after),
        ):
            _require(
                number is None or (math.isfinite(number) and number >= 0),
                f"{flag} is {number}; it must be 0 or more",
            )
        for flag, word, words in (
            ("--method", self.method, ("coma", "independent", "mae")),
            ("--resume", self.resume, ("auto", "never")),
            ("--decode", self.decode, ("auto", "cpu", "gpu")),
        ):
            _require(word in words, f"{flag} is {word!r}; it must be {' or '.join(words)}")
        for name in self.trackers:
            _require(
                name in TRACKERS,
                f"--log-to {name}: it must be {' or '.join(TRACKERS)}, or both, with a comma",
            )
        _require(
            self.start_size is None or self.start_size <= self.image_size,
            f"--start-size {self.start_size} is above --image-size {self.image_size}: crops grow, start with less",
        )
        _require(
            self.devices is None or self.hostfile is None,
            "--devices starts processes on this machine and --hostfile on those of the file: give one",
        )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log_to`."""
        return tuple(name.strip() for name in self.log_to.split(",")) if self.log_to else ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; paths as strings."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> PretrainConfig:
        """Make a configuration from `to_json`'s fields."""
        paths = {
            name: Path(fields[name])
            for name in ("data", "init", "out", "hostfile")
            if fields.get(name) is not None and "://" not in fields[name]
        }
        return cls(**{**fields, **paths})

    @classmethod
    def load(cls, path: Path) -> PretrainConfig:
        """Read a configuration that `save` wrote."""
        return cls.from_json(json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Write the configuration as JSON, for the processes of a launcher to read."""
        path.write_text(json.dumps(self.to_json(), indent=2))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)
