"""`coma pretrain`."""

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
    Out,
    Resume,
    SaveEvery,
    Steps,
    StopAfter,
    StuckAfter,
    WarmupEpochs,
    WeightDecay,
    Workers,
)


def pretrain(
    data: Data = None,
    image_size: Annotated[int, typer.Option(help="Side of a crop, pixels.", rich_help_panel=DATA)] = 224,
    start_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the first crops, which grow to --image-size: early steps cost less.",
            metavar="PX",
            rich_help_panel=DATA,
            show_default="--image-size",
        ),
    ] = None,
    decode: Decode = "auto",
    workers: Workers = None,
    model: Annotated[
        str,
        typer.Option(help="dyvit_nano, _tiny, _small, _base, _large, or a timm ViT.", rich_help_panel=MODEL),
    ] = "dyvit_base",
    method: Annotated[
        str,
        typer.Option(
            help="coma, or for comparison: independent masks for the views, or mae.",
            metavar="coma|independent|mae",
            rich_help_panel=MODEL,
        ),
    ] = "coma",
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from the weights of a `coma export`; --with-decoder adds the decoder's.",
            metavar="DIR",
            rich_help_panel=MODEL,
            show_default="random weights",
        ),
    ] = None,
    views: Annotated[int, typer.Option(help="Views of an image (mae has 1).", rich_help_panel=MODEL)] = 2,
    patch_size: Annotated[
        int | None,
        typer.Option(
            help="Side of a patch, pixels; less for small images.", rich_help_panel=MODEL, show_default="4"
        ),
    ] = None,
    compile: Compile = False,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    base_lr: Annotated[
        float, typer.Option(help="Learning rate at 256 images a step.", rich_help_panel=OPTIMISATION)
    ] = 6e-4,
    weight_decay: WeightDecay = 0.05,
    warmup_epochs: WarmupEpochs = None,
    seed: Annotated[
        int, typer.Option(help="Of weights, order, crops and views.", rich_help_panel=OPTIMISATION)
    ] = 0,
    out: Out = None,
    resume: Resume = "auto",
    save_every: SaveEvery = None,
    keep_last: KeepLast = 2,
    keep_every_epochs: KeepEveryEpochs = None,
    stuck_after: StuckAfter = 1800.0,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            help="Epochs between evaluations: 20-NN, if there are labels, and RankMe.",
            rich_help_panel=RUN,
            show_default="never",
        ),
    ] = None,
    log_to: LogTo = None,
    stop_after: StopAfter = None,
    json: Json = False,
    ds_config: DsConfig = "zero1",
    devices: Devices = None,
    hostfile: Hostfile = None,
    launched: Launched = None,
) -> None:
    """Pre-train a vision backbone on complementary views of images.

    The same command again goes on where it stopped. Under deepspeed, torchrun
    or srun it joins their processes.
    """
    given = locals()
    from coma.cli import console
    from coma.training import PretrainConfig
    from coma.training import pretrain as start

    if launched is not None:
        config = PretrainConfig.load(launched)
    else:
        config = PretrainConfig.of_options(given)
    with console.live_line() as watch:
        result = start(config, watch, launched)
    if json and result and launched is None:
        console.print_result(result, json=True)
