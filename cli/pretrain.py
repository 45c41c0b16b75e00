"""`coma pretrain`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coma.training.metrics import Progress

DATA, MODEL, OPTIMISATION, RUN, MACHINE = "Data", "Model", "Optimisation", "Run", "Machine"


def pretrain(
    data: Annotated[
        str | None,
        typer.Argument(
            help="Data set made by `coma shard`: a folder, or a URL (s3://...).",
            show_default="the one in the current folder",
        ),
    ] = None,
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
    decode: Annotated[
        str,
        typer.Option(
            help="Where images are decoded; auto: on the device that trains.",
            metavar="auto|cpu|gpu",
            rich_help_panel=DATA,
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Decoding threads a process.", rich_help_panel=DATA, show_default="its share of the cores"
        ),
    ] = None,
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
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Use torch.compile: slow start, faster steps.", rich_help_panel=MODEL),
    ] = False,
    epochs: Annotated[
        float | None,
        typer.Option(help="Passes over the data.", rich_help_panel=OPTIMISATION, show_default="100"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Steps, instead of --epochs.", rich_help_panel=OPTIMISATION, show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images a step, over all devices.",
            rich_help_panel=OPTIMISATION,
            show_default="256 on GPUs, 32 on a CPU; fewer for small data",
        ),
    ] = None,
    base_lr: Annotated[
        float, typer.Option(help="Learning rate at 256 images a step.", rich_help_panel=OPTIMISATION)
    ] = 6e-4,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.", rich_help_panel=OPTIMISATION)] = 0.05,
    warmup_epochs: Annotated[
        float | None,
        typer.Option(
            help="Epochs of linear warm-up.",
            rich_help_panel=OPTIMISATION,
            show_default="a twentieth of the run",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of weights, order, crops and views.", rich_help_panel=OPTIMISATION)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", rich_help_panel=RUN, show_default="runs/MODEL[-NUMBER]")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: the same command goes on where it stopped.", metavar="auto|never", rich_help_panel=RUN
        ),
    ] = "auto",
    save_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints.", rich_help_panel=RUN, show_default="an epoch, at most 2000"
        ),
    ] = None,
    keep_last: Annotated[int, typer.Option(help="Newest checkpoints to keep.", rich_help_panel=RUN)] = 2,
    keep_every_epochs: Annotated[
        int | None,
        typer.Option(
            help="Keep those at the end of every so many epochs for good.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    stuck_after: Annotated[
        float,
        typer.Option(
            help="Seconds without progress after which to end the run; 0: never.", rich_help_panel=RUN
        ),
    ] = 1800.0,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            help="Epochs between evaluations: 20-NN, if there are labels, and RankMe.",
            rich_help_panel=RUN,
            show_default="never",
        ),
    ] = None,
    log_to: Annotated[
        str | None,
        typer.Option(
            help="Log figures there as well; they must be installed.",
            metavar="wandb,mlflow",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(help="Save and leave after so many steps.", rich_help_panel=RUN, show_default=False),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUN)
    ] = False,
    ds_config: Annotated[
        str,
        typer.Option(
            help="DeepSpeed configuration: zero0 to zero3, zero2_offload, zero3_offload, or a file.",
            metavar="NAME|PATH",
            rich_help_panel=MACHINE,
        ),
    ] = "zero1",
    devices: Annotated[
        int | None,
        typer.Option(help="Processes on this machine, one a GPU.", rich_help_panel=MACHINE, show_default="1"),
    ] = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(
            help="DeepSpeed hostfile: machines to run on.", rich_help_panel=MACHINE, show_default=False
        ),
    ] = None,
    launched: Annotated[
        Path | None, typer.Option(hidden=True)
    ] = None,  # a launcher's way to start its processes
) -> None:
    """Pre-train a vision backbone on complementary views of images.

    The same command again goes on where it stopped. Under deepspeed, torchrun
    or srun it joins their processes.
    """
    from coma.cli import console
    from coma.training import PretrainConfig
    from coma.training import pretrain as start

    if launched is not None:
        config = PretrainConfig.load(launched)
    else:
        config = PretrainConfig(
            data=data,
            model=model,
            method=method,
            views=views,
            image_size=image_size,
            start_size=start_size,
            patch_size=patch_size,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            base_lr=base_lr,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            seed=seed,
            init=init,
            out=out,
            resume=resume,
            save_every=save_every,
            evaluate_every=evaluate_every,
            log_to=log_to,
            keep_last=keep_last,
            keep_every_epochs=keep_every_epochs,
            stuck_after=stuck_after,
            stop_after=stop_after,
            ds_config=ds_config,
            devices=devices,
            hostfile=hostfile,
            compile=compile,
            decode=decode,
            workers=workers,
        )
    with _live_line() as watch:
        result = start(config, watch, launched)
    if json and result and launched is None:
        console.print_result(result, json=True)


@contextmanager
def _live_line() -> "Iterator[Callable[[Progress], None] | None]":
    """Show where the run stands in one line that stays in place; None where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    from coma.cli import console

    if not console.interactive():
        yield None
        return
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.description}"))
    with console.progress(*columns) as bar:
        task = bar.add_task("starting", total=None)

        def show(now: "Progress") -> None:
            bar.update(task, completed=now.step, total=now.steps, description=now.figures)

        yield show
