"""Types of `coma`; made by `python tests/helpers/stub.py` from the options of the commands."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Literal, overload

from coma import errors as errors
from coma.api.results import (
    DryRunResult,
    EmbedResult,
    ExportResult,
    PictureResult,
    ScoreResult,
    SegmentationResult,
    ShardResult,
    TrainingResult,
    VerifyResult,
)
from coma.model.coma import CoMA as CoMA
from coma.model.dyvit import DyViT as DyViT
from coma.pipeline import Stream as Stream
from coma.shards.check.verify import VerifyProgress
from coma.shards.index.index import IndexProgress
from coma.shards.write.summary import ShardProgress
from coma.training.logs.metrics import Progress

__all__ = [
    "CoMA",
    "DyViT",
    "Stream",
    "embed",
    "export",
    "finetune",
    "index",
    "knn",
    "pretrain",
    "probe",
    "reconstruct",
    "shard",
    "verify",
]

def embed(
    model: str | PathLike[str],
    images: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    half: bool = False,
    patches: bool = False,
    stride: int | None = None,
    image_size: int | None = None,
    untrained: bool = False,
    neighbours: int | None = None,
    duplicates_above: float = 0.95,
    query: str | None = None,
    split: str | None = None,
    layout: str | None = None,
    splits: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    root: str | PathLike[str] | None = None,
    batch_size: int = 64,
    device: str | None = None,
    devices: int | Literal["auto"] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> EmbedResult:
    """Write the features of images as a table.

    Each image becomes a vector, in a row with its path and label. The same call goes on where it was stopped or killed.

    Args:
        model: Run folder, checkpoint, export, or a name in timm with weights (hf-hub:OWNER/NAME, local-dir:FOLDER).
        images: Folder of images, tar, parquet or list of paths; or shards: a folder, or a URL (s3://...).
        out: Table to write, a .parquet; or an .npy, with a .parquet of paths beside it. Default:
            IMAGES-MODEL.parquet in the current folder.
        half: Write float16, half the size, in place of float32.
        patches: Write a map of patch features of each image as well.
        stride: Number of pixels from one vector of a map to the next; resampled from the model's own, with
            `patches`. Default: that of the model's last stage.
        image_size: Side of the images, in pixels. Default: that of the model.
        untrained: Take a name in timm without its weights, at random, as a baseline.
        neighbours: Find so many nearest images of each by cosine similarity, near-duplicates and outliers, and draw
            some.
        duplicates_above: Cosine similarity from which two images count as near-duplicates.
        query: Path or key of the image whose neighbours are drawn. Default: six spread over all.
        split: Split to take alone. Default: all, train first.
        layout: Kind of source: folder, flat (no labels), masks, ade20k, voc, imagenet, kaggle, tar, webdataset,
            parquet or list. Default: detected.
        splits: Folders that are splits, such as train=photos/2019,val=photos/2020; train=. is all the others.
            Default: told from their names.
        image_column: Column of images in a parquet source, of paths in a list. Default: detected.
        label_column: Column of labels in a parquet source or a list. Default: detected.
        root: Folder that the paths of a list are relative to. Default: the list's own.
        batch_size: Number of images per batch.
        device: Device to run on. Default: a GPU if there is one.
        devices: Number of processes, one per GPU if there are GPUs; auto: one on each. The result is the same.
            Default: 1.
        overwrite: Replace an OUT of other settings, or an unfinished one.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        EmbedResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

def export(
    run: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    with_decoder: bool = False,
    onnx: bool = False,
    license: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> ExportResult:
    """Write the backbone of a run as a timm model, with a model card.

    Args:
        run: Run folder, or one of its checkpoints.
        folder: Folder to write: new, empty, or an earlier export.
        with_decoder: Write the decoder as well, for `coma pretrain --init DIR`.
        onnx: Write DIR/model.onnx as well, which needs the extra onnx.
        license: License for the model card, such as apache-2.0 or cc-by-nc-4.0; `push` wants one. Default: unknown.
        push: Repository of the Hugging Face Hub to upload DIR to; it is made if there is none. Default: none.
        private: Make a new repository private.

    Returns:
        ExportResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

def finetune(
    source: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    rand_augment: int = 9,
    erasing: float = 0.25,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    label_smoothing: float = 0.1,
    drop_path: float = 0.1,
    ema_decay: float = 0.0,
    layer_decay: float = 0.65,
    image_size: int | None = None,
    crop_scale: float = 0.08,
    flips: Literal["horizontal", "none", "both"] = "horizontal",
    quarter_turns: bool = False,
    mean: str | None = None,
    std: str | None = None,
    clip_percentile: float | None = None,
    decode: Literal["auto", "cpu", "gpu"] = "auto",
    workers: int | None = None,
    fault_budget: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    base_lr: float = 0.0005,
    weight_decay: float = 0.05,
    warmup_epochs: float | None = None,
    schedule: Literal["cosine", "constant"] = "cosine",
    cooldown_epochs: float | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    resume: Literal["auto", "never"] = "auto",
    extend: bool = False,
    save_every: int | None = None,
    keep_last: int = 2,
    keep_every_epochs: int | None = None,
    stuck_after: float = 1800.0,
    evaluate_every: int = 1,
    log_to: str | None = None,
    stop_after: int | None = None,
    ds_config: str | PathLike[str] = "zero1",
    micro_batch_size: int | Literal["auto"] | None = None,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    grad_checkpointing: str = "none",
    devices: int | Literal["auto"] | None = None,
    hostfile: str | PathLike[str] | None = None,
    compile: bool = False,
    config: str | PathLike[str] | None = None,
    like: str | PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Fine-tune a pre-trained backbone on labelled images.

    The same call resumes where it stopped. The defaults are MAE's for ViT-B.

    Args:
        source: Backbone to fine-tune: a run, a checkpoint, an export, or a model of timm or the Hub (hf-hub:NAME).
        data: Data set made by `coma shard`: a folder, or a URL (s3://...). Default: the one in the current folder.
        rand_augment: Magnitude of RandAugment, two operations per image, up to 30; 0: none.
        erasing: Share of images of which a random rectangle is erased.
        mixup: Alpha of mixup; 0: none.
        cutmix: Alpha of CutMix; 0: none. With mixup, each step takes either at random.
        label_smoothing: Share of a label that is spread over all classes.
        drop_path: Stochastic depth: drop rate of the last block, rising linearly from 0.
        ema_decay: Decay of an exponential moving average (EMA) of the weights, such as 0.9999, which is evaluated
            and exported in their place; 0: none.
        layer_decay: Learning rate of a layer as a share of that of the layer above it.
        image_size: Side of the square crops, in pixels. Default: as in pre-training.
        crop_scale: Smallest share of an image's area that a crop shows.
        flips: Flips of crops: left and right (horizontal), none, or also top and bottom (both).
        quarter_turns: Turn crops by quarters at random, for images that have no up.
        mean: Mean of each channel, by which images are normalised: of 8-bit images for values from 0 to 1, of
            others in their own units. Default: ImageNet's for 8-bit RGB, else the data's.
        std: Standard deviation of each channel, as `mean`. Default: as `mean`.
        clip_percentile: P: values below the P-th and above the (100 - P)-th percentile of their channel are clipped
            there. Default: no clipping.
        decode: Where images are decoded; auto: on the device that trains.
        workers: Number of decoding threads per process. Default: its share of the cores.
        fault_budget: Number of damaged samples that a process replaces by others before the run ends. Default: a
            thousandth of the data, at least 10.
        epochs: Number of passes over the data. Default: 100.
        steps: Number of steps, instead of `epochs`.
        batch_size: Number of images per step, over all devices. Default: 256 on GPUs, 32 on a CPU, less for small
            data.
        base_lr: Peak learning rate for a batch of 256 images; it is scaled linearly with the batch.
        weight_decay: Weight decay, applied to matrices only.
        warmup_epochs: Epochs of linear warm-up of the learning rate. Default: a twentieth of the run.
        schedule: Learning rate after the warm-up: half a cosine, or constant with a cooldown.
        cooldown_epochs: Last epochs, in which a constant learning rate falls. Default: a fifth of the run.
        seed: Random seed for sample order, crops and augmentation.
        out: Run folder. Default: runs/RUN-finetune[-NUMBER].
        resume: auto: resume the unfinished run of the same command; never: start a new one.
        extend: Train the run in `out` for longer: to more `epochs` or `steps`.
        save_every: Steps between checkpoints. Default: an epoch or a 50th of the run, at most 2000.
        keep_last: Number of newest checkpoints to keep.
        keep_every_epochs: Epochs between checkpoints that are kept for good. Default: none.
        stuck_after: Seconds without progress after which the run ends as stuck; 0: never.
        evaluate_every: Epochs between evaluations on split val.
        log_to: Experiment trackers, if installed, that get the metrics as well: wandb, mlflow, trackio. Default:
            none.
        stop_after: Number of steps after which to save a checkpoint and leave. Default: never.
        ds_config: DeepSpeed configuration: zero0 to zero3, zero2_offload, zero3_offload, zero3_nvme, or a file.
        micro_batch_size: Images per forward pass on each device; auto: the most that fit in memory. The rest of the
            batch is accumulated. Default: a device's whole share of the batch.
        precision: Number format of weights and activations. Default: the configuration's, else bf16 on GPUs that
            have it, fp32.
        grad_checkpointing: Stages to recompute in the backward pass instead of keeping their activations; all: the
            decoder too.
        devices: Number of processes to start on this machine, one per GPU; auto: one on each GPU. Default: 1.
        hostfile: DeepSpeed hostfile with the machines to run on. Default: this machine.
        compile: Compile the model with torch.compile: slower start, faster steps.
        config: File of options in YAML, TOML or JSON, RUN/config.json, or the name of a packaged recipe; arguments
            that are given override it.
        like: Run whose options a new run takes, but for those given here.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        TrainingResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

def index(
    source: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[IndexProgress], None] | None = None,
) -> ShardResult:
    """Make a manifest for WebDataset tars that already exist, which are not rewritten.

    Args:
        source: Folder of WebDataset tars, at any depth, or one tar.
        out: New or empty folder. Default: NAME-index in the current folder.
        workers: Number of worker processes. Default: one per core.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        ShardResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

@overload
def knn(
    run: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    task: Literal["classification"] = "classification",
    window_size: int | None = None,
    shorter_side: int | None = None,
    stride: int | None = None,
    patches: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    devices: int | Literal["auto"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Classify images or their pixels by the nearest neighbours among frozen features.

    Neighbours come from split train, tested images from split val, or from a held-out fifth of train.

    Args:
        run: Run folder, one of its checkpoints, or what `coma export` wrote.
        data: Labelled data set made by `coma shard`: a folder, or a URL (s3://...). Default: the run's own.
        task: What is classified: images, or the pixels of images with masks.
        window_size: Side of the windows that the network sees, in pixels. Default: the run's image size.
        shorter_side: Side in pixels that images are resized to, to be covered by sliding windows. Default: each
            whole image squeezed into one window; with dinov2, the window's side.
        stride: Pixels from patch to patch of the maps. Default: that of the third stage of DyViT, 4 patches.
        patches: Number of patches to learn from, at most: the same number of each image. Default: 100000.
        batch_size: Number of images per batch.
        device: Device to run on. Default: a GPU if there is one.
        devices: Number of processes, one per GPU if there are GPUs; auto: one on each. Segmentation takes one.
            Default: 1.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        ScoreResult | SegmentationResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

@overload
def knn(
    run: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    task: Literal["segmentation"],
    window_size: int | None = None,
    shorter_side: int | None = None,
    stride: int | None = None,
    patches: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    devices: int | Literal["auto"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SegmentationResult: ...
def pretrain(
    data: str | PathLike[str] | Sequence[str | PathLike[str] | tuple[str | PathLike[str], float]] | None = None,
    *,
    start_size: int | None = None,
    model: str = "dyvit_base",
    method: Literal["coma", "independent", "mae"] = "coma",
    views: int = 2,
    patch_size: int | None = None,
    init: str | PathLike[str] | None = None,
    evaluate_on: str | PathLike[str] | None = None,
    show_channels: str | None = None,
    image_size: int = 224,
    crop_scale: float = 0.2,
    flips: Literal["horizontal", "none", "both"] = "horizontal",
    quarter_turns: bool = False,
    mean: str | None = None,
    std: str | None = None,
    clip_percentile: float | None = None,
    decode: Literal["auto", "cpu", "gpu"] = "auto",
    workers: int | None = None,
    fault_budget: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    base_lr: float = 0.0006,
    weight_decay: float = 0.05,
    warmup_epochs: float | None = None,
    schedule: Literal["cosine", "constant"] = "cosine",
    cooldown_epochs: float | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    resume: Literal["auto", "never"] = "auto",
    extend: bool = False,
    save_every: int | None = None,
    keep_last: int = 2,
    keep_every_epochs: int | None = None,
    stuck_after: float = 1800.0,
    evaluate_every: int | None = None,
    log_to: str | None = None,
    stop_after: int | None = None,
    ds_config: str | PathLike[str] = "zero1",
    micro_batch_size: int | Literal["auto"] | None = None,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    grad_checkpointing: str = "none",
    devices: int | Literal["auto"] | None = None,
    hostfile: str | PathLike[str] | None = None,
    compile: bool = False,
    config: str | PathLike[str] | None = None,
    like: str | PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Pre-train a vision backbone on complementary views of images.

    The same call resumes where it stopped. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.

    Args:
        data: Data set made by `coma shard`: a folder, or a URL (s3://...). Several are mixed, by the share after a
            colon (a-shards:0.7 b-shards:0.3), else as they have images. Default: the one in the current folder.
        start_size: Side of the first crops, in pixels; they grow to `image_size`, so that early steps cost less.
            Default: `image_size`.
        model: Network: dyvit_nano, _tiny, _small, _base, _large, or a timm ViT.
        method: Masking: complementary views (coma), or for comparison independently masked ones, or mae.
        views: Number of views per image; mae has 1.
        patch_size: Side of a patch, in pixels; small images need small ones. Default: the model's own.
        init: Weights that the run starts from: a run, an export, or a model of timm or the Hub (hf-hub:OWNER/NAME).
            Default: random weights.
        evaluate_on: Data set made by `coma shard` to evaluate on, with `evaluate_every`. Default: the run's own, of
            several the first.
        show_channels: Channels that previews show as red, green and blue, counted from 1, or one in grey; for
            images that are not RGB. Default: 1,2,3.
        image_size: Side of the square crops, in pixels.
        crop_scale: Smallest share of an image's area that a crop shows.
        flips: Flips of crops: left and right (horizontal), none, or also top and bottom (both).
        quarter_turns: Turn crops by quarters at random, for images that have no up.
        mean: Mean of each channel, by which images are normalised: of 8-bit images for values from 0 to 1, of
            others in their own units. Default: ImageNet's for 8-bit RGB, else the data's.
        std: Standard deviation of each channel, as `mean`. Default: as `mean`.
        clip_percentile: P: values below the P-th and above the (100 - P)-th percentile of their channel are clipped
            there. Default: no clipping.
        decode: Where images are decoded; auto: on the device that trains.
        workers: Number of decoding threads per process. Default: its share of the cores.
        fault_budget: Number of damaged samples that a process replaces by others before the run ends. Default: a
            thousandth of the data, at least 10.
        epochs: Number of passes over the data. Default: 100.
        steps: Number of steps, instead of `epochs`.
        batch_size: Number of images per step, over all devices. Default: 256 on GPUs, 32 on a CPU, less for small
            data.
        base_lr: Peak learning rate for a batch of 256 images; it is scaled linearly with the batch.
        weight_decay: Weight decay, applied to matrices only.
        warmup_epochs: Epochs of linear warm-up of the learning rate. Default: a twentieth of the run.
        schedule: Learning rate after the warm-up: half a cosine, or constant with a cooldown.
        cooldown_epochs: Last epochs, in which a constant learning rate falls. Default: a fifth of the run.
        seed: Random seed for weights, sample order, crops and views.
        out: Run folder. Default: runs/MODEL[-NUMBER].
        resume: auto: resume the unfinished run of the same command; never: start a new one.
        extend: Train the run in `out` for longer: to more `epochs` or `steps`.
        save_every: Steps between checkpoints. Default: an epoch or a 50th of the run, at most 2000.
        keep_last: Number of newest checkpoints to keep.
        keep_every_epochs: Epochs between checkpoints that are kept for good. Default: none.
        stuck_after: Seconds without progress after which the run ends as stuck; 0: never.
        evaluate_every: Epochs between evaluations: 20-NN accuracy, if there are labels, mIoU of neighbours, if
            there are masks, and RankMe. Default: never.
        log_to: Experiment trackers, if installed, that get the metrics as well: wandb, mlflow, trackio. Default:
            none.
        stop_after: Number of steps after which to save a checkpoint and leave. Default: never.
        ds_config: DeepSpeed configuration: zero0 to zero3, zero2_offload, zero3_offload, zero3_nvme, or a file.
        micro_batch_size: Images per forward pass on each device; auto: the most that fit in memory. The rest of the
            batch is accumulated. Default: a device's whole share of the batch.
        precision: Number format of weights and activations. Default: the configuration's, else bf16 on GPUs that
            have it, fp32.
        grad_checkpointing: Stages to recompute in the backward pass instead of keeping their activations; all: the
            decoder too.
        devices: Number of processes to start on this machine, one per GPU; auto: one on each GPU. Default: 1.
        hostfile: DeepSpeed hostfile with the machines to run on. Default: this machine.
        compile: Compile the model with torch.compile: slower start, faster steps.
        config: File of options in YAML, TOML or JSON, RUN/config.json, or the name of a packaged recipe; arguments
            that are given override it.
        like: Run whose options a new run takes, but for those given here.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        TrainingResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

@overload
def probe(
    run: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    protocol: Literal["logistic", "dinov2", "mae"] = "logistic",
    task: Literal["classification"] = "classification",
    window_size: int | None = None,
    shorter_side: int | None = None,
    stride: int | None = None,
    patches: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    devices: int | Literal["auto"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Fit a linear classifier on frozen features, of images or of their pixels.

    It is fitted on split train and tested on split val, or on a held-out fifth of train.

    Args:
        run: Run folder, one of its checkpoints, or what `coma export` wrote.
        data: Labelled data set made by `coma shard`: a folder, or a URL (s3://...). Default: the run's own.
        protocol: Protocol by which the classifier is fitted (docs/evaluate.md).
        task: What is classified: images, or the pixels of images with masks.
        window_size: Side of the windows that the network sees, in pixels. Default: the run's image size.
        shorter_side: Side in pixels that images are resized to, to be covered by sliding windows. Default: each
            whole image squeezed into one window; with dinov2, the window's side.
        stride: Pixels from patch to patch of the maps. Default: that of the third stage of DyViT, 4 patches.
        patches: Number of patches to learn from, at most: the same number of each image. Default: 100000.
        batch_size: Number of images per batch.
        device: Device to run on. Default: a GPU if there is one.
        devices: Number of processes, one per GPU if there are GPUs; auto: one on each. Segmentation takes one.
            Default: 1.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        ScoreResult | SegmentationResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

@overload
def probe(
    run: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    protocol: Literal["logistic", "dinov2", "mae"] = "logistic",
    task: Literal["segmentation"],
    window_size: int | None = None,
    shorter_side: int | None = None,
    stride: int | None = None,
    patches: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    devices: int | Literal["auto"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SegmentationResult: ...
def reconstruct(
    run: str | PathLike[str],
    images: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    *,
    out: str | PathLike[str] | None = None,
    count: int = 8,
    seed: int = 0,
    show_channels: str | None = None,
    device: str | None = None,
) -> PictureResult:
    """Draw originals, views and reconstructions side by side.

    Args:
        run: Run folder, or one of its checkpoints.
        images: Image files, folders of images, or a data set made by `coma shard`. Default: the run's own data.
        out: Picture to write. Default: RUN/reconstruction.png.
        count: Number of images, one row each.
        seed: Random seed for the masks.
        show_channels: Channels shown as red, green and blue, counted from 1, such as 4,3,2; one alone is shown in
            grey. Default: 1,2,3.
        device: Device to run on. Default: a GPU if there is one.

    Returns:
        PictureResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

@overload
def shard(
    source: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    dry_run: Literal[False] = False,
    layout: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    root: str | PathLike[str] | None = None,
    splits: str | None = None,
    masks: str | None = None,
    mask_classes: str | None = None,
    mask_ignore: int | Literal["none"] | None = None,
    seed: int = 0,
    shard_bytes: int | str | None = None,
    val_fraction: float = 0.0,
    dedupe: bool = False,
    resize: int | None = None,
    quality: int = 90,
    check: Literal["full", "header"] = "full",
    max_pixels: int = 67108864,
    channels: int | None = None,
    dtype: Literal["uint8", "uint16", "int16", "float32"] | None = None,
    uncompressed: bool = False,
    workers: int | None = None,
    engine: Literal["processes", "ray"] = "processes",
    part: str | None = None,
    progress: Callable[[ShardProgress], None] | None = None,
) -> ShardResult:
    """Pack images into WebDataset shards; damaged ones are listed.

    Images are shuffled once by seed and copied untouched. The same call resumes where it stopped or was killed.

    Args:
        source: Folder of images; or ImageNet as downloaded, tars, parquet, a list of paths.
        out: New or empty folder, or a URL (s3://bucket/name). Default: NAME-shards in the current folder.
        dry_run: Tell what would be written, and write nothing.
        layout: Kind of source: folder, flat (no labels), masks, ade20k, voc, imagenet, kaggle, tar, webdataset,
            parquet or list. Default: detected.
        image_column: Column of images in a parquet source, of paths in a list. Default: detected.
        label_column: Column of labels in a parquet source or a list. Default: detected.
        root: Folder that the paths of a list are relative to. Default: the list's own.
        splits: Folders that are splits, such as train=photos/2019,val=photos/2020; train=. is all the others.
            Default: told from their names.
        masks: Segmentation masks: their folder, or names such as *_labelIds.png; none takes images alone. Default:
            told from their names.
        mask_classes: Number of classes of the masks, or a file of their names, a line each. Default: by the layout,
            else what the masks hold.
        mask_ignore: Value in the masks of pixels without a class; with 0 the classes start at 1. Default: 255; 0 in
            ADE20K.
        seed: Random seed of the shuffle.
        shard_bytes: Size of a shard: 256MiB, 1GB, or a number of bytes. Default: 256MiB, or less for at least 16
            shards.
        val_fraction: Share of the images to hold out as split val, if SOURCE has no validation images.
        dedupe: Set exact duplicates aside; the source is read twice.
        resize: Re-encode as JPEG with the shorter side at most this long, in pixels. Default: bytes as they are.
        quality: JPEG quality, 1 to 100, with `resize`.
        check: full: decode every image; header: read its header only, which is faster.
        max_pixels: Number of pixels above which an image is set aside as a decompression bomb.
        channels: Take TIFF, PNG, .npy and DICOM of this many channels, 1 to 32, at their own depth. Default: 8-bit
            RGB.
        dtype: Type of the values, with `channels`: uint8, uint16, int16 or float32. Default: that of the first
            image.
        uncompressed: Write samples as .npy, with `channels`: more bytes, and far less time to read.
        workers: Number of worker processes. Default: one per core.
        engine: Where the workers run: as processes of this machine, or as tasks of a Ray cluster.
        part: Write this part of the shards only, for array jobs; the part that ends last merges them, but not in an
            object store.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        ShardResult | DryRunResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """

@overload
def shard(
    source: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    dry_run: Literal[True],
    layout: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    root: str | PathLike[str] | None = None,
    splits: str | None = None,
    masks: str | None = None,
    mask_classes: str | None = None,
    mask_ignore: int | Literal["none"] | None = None,
    seed: int = 0,
    shard_bytes: int | str | None = None,
    val_fraction: float = 0.0,
    dedupe: bool = False,
    resize: int | None = None,
    quality: int = 90,
    check: Literal["full", "header"] = "full",
    max_pixels: int = 67108864,
    channels: int | None = None,
    dtype: Literal["uint8", "uint16", "int16", "float32"] | None = None,
    uncompressed: bool = False,
    workers: int | None = None,
    engine: Literal["processes", "ray"] = "processes",
    part: str | None = None,
    progress: Callable[[ShardProgress], None] | None = None,
) -> DryRunResult: ...
def verify(
    data: str | PathLike[str] | None = None,
    *,
    decode: bool = False,
    progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyResult:
    """Check every byte of a data set against its manifest.

    Differences are returned as `problems`, not raised.

    Args:
        data: Data set made by `coma shard`: a folder, or a URL (s3://...). Default: the one in the current folder.
        decode: Decode every image as well, which is slower.
        progress: Function that is called as the work goes on, such as print.

    Returns:
        VerifyResult: paths and figures.

    Raises:
        ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.
    """
