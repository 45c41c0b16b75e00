"""`coma finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli.training_options import (
    DATA,
    MODEL,
    OPTIMISATION,
    RUN,
    BatchSize,
    Compile,
    Data,
    Decode,
    Devices,
    DsConfig,
    Epochs,
    Hostfile,
    Json,
    KeepEveryEpochs,
    KeepLast,
    Launched,
    LogTo,
    Resume,
    SaveEvery,
    Steps,
    StopAfter,
    StuckAfter,
    WarmupEpochs,
    WeightDecay,
    Workers,
)

AUGMENTATION = "Augmentation"


def finetune(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="Whose backbone is taken: a run folder, a checkpoint, or what `coma export` wrote.",
            metavar="RUN|EXPORT",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of a crop, pixels.", rich_help_panel=DATA, show_default="as in pre-training"),
    ] = None,
    decode: Decode = "auto",
    workers: Workers = None,
    crop_scale: Annotated[
        float,
        typer.Option(help="Least part of an image that a crop shows.", rich_help_panel=AUGMENTATION),
    ] = 0.08,
    rand_augment: Annotated[
        int,
        typer.Option(
            help="Magnitude of RandAugment, up to 30; 0: none.", metavar="N", rich_help_panel=AUGMENTATION
        ),
    ] = 9,
    erasing: Annotated[
        float,
        typer.Option(help="Share of images of which a part is erased.", rich_help_panel=AUGMENTATION),
    ] = 0.25,
    mixup: Annotated[
        float, typer.Option(help="Alpha of mixup; 0: none.", rich_help_panel=AUGMENTATION)
    ] = 0.8,
    cutmix: Annotated[
        float, typer.Option(help="Alpha of CutMix; 0: none.", rich_help_panel=AUGMENTATION)
    ] = 1.0,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of a label given to all classes.", rich_help_panel=AUGMENTATION)
    ] = 0.1,
    drop_path: Annotated[
        float, typer.Option(help="Stochastic depth of the last block.", rich_help_panel=MODEL)
    ] = 0.1,
    average_decay: Annotated[
        float,
        typer.Option(
            help="Evaluate and export a moving average of the weights, such as 0.9999; 0: the weights.",
            rich_help_panel=MODEL,
        ),
    ] = 0.0,
    compile: Compile = False,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    base_lr: Annotated[
        float, typer.Option(help="Learning rate at 256 images a step.", rich_help_panel=OPTIMISATION)
    ] = 5e-4,
    layer_decay: Annotated[
        float,
        typer.Option(
            help="Share of its rate that the layer below a layer learns at.", rich_help_panel=OPTIMISATION
        ),
    ] = 0.65,
    weight_decay: WeightDecay = 0.05,
    warmup_epochs: WarmupEpochs = None,
    seed: Annotated[
        int, typer.Option(help="Of the order, crops and augmentation.", rich_help_panel=OPTIMISATION)
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder.", rich_help_panel=RUN, show_default="runs/RUN-finetune[-NUMBER]"),
    ] = None,
    resume: Resume = "auto",
    save_every: SaveEvery = None,
    keep_last: KeepLast = 2,
    keep_every_epochs: KeepEveryEpochs = None,
    stuck_after: StuckAfter = 1800.0,
    evaluate_every: Annotated[
        int, typer.Option(help="Epochs between tests on split val.", rich_help_panel=RUN)
    ] = 1,
    log_to: LogTo = None,
    stop_after: StopAfter = None,
    json: Json = False,
    ds_config: DsConfig = "zero1",
    devices: Devices = None,
    hostfile: Hostfile = None,
    launched: Launched = None,
) -> None:
    """Fine-tune a pre-trained backbone with a classifier on labelled images.

    The same command again goes on where it stopped. The defaults are MAE's
    for ViT-B; deepspeed, torchrun and srun work as for coma pretrain.
    """
    given = locals()
    from coma.cli import console
    from coma.errors import UsageError
    from coma.training import FinetuneConfig
    from coma.training import finetune as start

    if launched is not None:
        config = FinetuneConfig.load(launched)
    elif source is None:
        raise UsageError("name what to fine-tune: coma finetune RUN, or what coma export wrote")
    else:
        config = FinetuneConfig.of_options(given)
    with console.live_line() as watch:
        result = start(config, watch, launched)
    if json and result and launched is None:
        console.print_result(result, json=True)
