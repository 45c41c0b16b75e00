"""Options of `coma bench`, light to import."""

from dataclasses import dataclass

from coma.shards.option import option, option_like, validate
from coma.training.config.options import parse_stages

GPU_BATCH, CPU_BATCH = 128, 8
_BATCH_MEGAPIXELS, _SAMPLE_MEGAPIXELS = 8.0, 512.0  # at most, as far as the least sizes allow


def _split(text: str, flag: str) -> tuple[str, ...]:
    """Read a list of words with commas between them."""
    return tuple(part.strip() for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Options of `coma bench loader`. Raises UsageError."""

    images: int | None = option(
        None,
        help="Number of images in the sample, rounded to whole batches.",
        least=1,
        shown_default="8 batches, less if images are large",
    )
    batch_size: int | None = option(
        None, help="Number of images per batch.", least=1, shown_default="32, up to 256 if images are small"
    )
    image_size: int = option(224, help="Side of the images of a batch, in pixels.", metavar="PX", least=1)
    rounds: int = option(5, help="Number of timing rounds.", least=1)

    def __post_init__(self) -> None:
        """Check the limits."""
        validate(self)

    def sample_size(self, megapixels: float) -> tuple[int, int]:
        """Return the number of images and the batch size for images of so many megapixels each."""
        shown = max(megapixels, self.image_size**2 / 1e6)
        batch_size = self.batch_size or next((size for size in (256, 128, 64) if size * shown <= _BATCH_MEGAPIXELS), 32)
        images = self.images or min(8 * batch_size, max(batch_size, int(_SAMPLE_MEGAPIXELS / shown)))
        return images, batch_size

    @property
    def resize_px(self) -> int:
        """The usual `coma shard --resize` for this image size: 256 for 224, and in proportion."""
        return -(-self.image_size * 8 // 7 // 32) * 32


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of `coma bench step`. Raises UsageError."""

    models: tuple[str, ...] = option(
        ("dyvit_base:coma", "vit_base_patch16_224:mae"),
        help="Networks to compare, as NAME:METHOD with the names of coma pretrain; ratios are to the last one.",
        metavar="LIST",
        parse=_split,
    )
    precisions: tuple[str, ...] = option(
        ("fp32", "bf16"),
        flag="--precision",
        help="Precisions to compare: fp32, bf16 or both.",
        metavar="LIST",
        parse=_split,
    )
    batch_size: int = option(8, help="Number of images per step.", least=1)
    image_size: int = option(224, help="Side of the images, in pixels.", metavar="PX", least=1)
    views: int = option(2, help="Number of complementary views per image.", metavar="K", least=2)
    grad_checkpointing: str = option(
        "none",
        help="Stages to recompute in the backward pass: networks that have them are measured with and without.",
        metavar="none|1,2|all",
    )
    rounds: int = option(5, help="Number of timing rounds.", least=1)

    def __post_init__(self) -> None:
        """Check the limits."""
        from coma.bench.network import check_models, check_precision  # they import torch

        validate(self)
        check_models(self.models)
        parse_stages(self.grad_checkpointing)
        for precision in self.precisions:
            check_precision(precision)


@dataclass(frozen=True, kw_only=True)
class EpochOptions:
    """Options of `coma bench epoch`. Raises UsageError."""

    models: tuple[str, ...] = option_like(StepOptions, "models")
    precision: str | None = option(
        None,
        help="Precision of training: fp32 or bf16.",
        metavar="fp32|bf16",
        shown_default="bf16 on a GPU that has it, else fp32",
    )
    batch_size: int | None = option_like(
        StepOptions, "batch_size", None, shown_default=f"{GPU_BATCH} on a GPU, {CPU_BATCH} on a CPU"
    )
    image_size: int = option_like(StepOptions, "image_size")
    views: int = option_like(StepOptions, "views")
    rounds: int = option_like(StepOptions, "rounds", 3)
    steps: int = option(10, help="Number of steps per round that are timed.", least=1)
    epochs: int = option(96, help="Number of epochs of ImageNet to project.", least=1)
    devices: int = option(8, help="Number of devices to project to.", least=1)

    def __post_init__(self) -> None:
        """Check the limits."""
        from coma.bench.network import check_models, check_precision  # they import torch

        validate(self)
        check_models(self.models)
        if self.precision is not None:
            check_precision(self.precision)
