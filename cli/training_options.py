"""Options that `coma pretrain` and `coma finetune` share."""

from pathlib import Path
from typing import Annotated

import typer

DATA, MODEL, OPTIMISATION, RUN, MACHINE = "Data", "Model", "Optimisation", "Run", "Machine"

Data = Annotated[
    str | None,
    typer.Argument(
        help="Data set made by `coma shard`: a folder, or a URL (s3://...).",
        show_default="the one in the current folder",
    ),
]
Decode = Annotated[
    str,
    typer.Option(
        help="Where images are decoded; auto: on the device that trains.",
        metavar="auto|cpu|gpu",
        rich_help_panel=DATA,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Decoding threads a process.", rich_help_panel=DATA, show_default="its share of the cores"
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Use torch.compile: slow start, faster steps.", rich_help_panel=MODEL),
]
Epochs = Annotated[
    float | None,
    typer.Option(help="Passes over the data.", rich_help_panel=OPTIMISATION, show_default="100"),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Steps, instead of --epochs.", rich_help_panel=OPTIMISATION, show_default=False),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images a step, over all devices.",
        rich_help_panel=OPTIMISATION,
        show_default="256 on GPUs, 32 on a CPU; fewer for small data",
    ),
]
WeightDecay = Annotated[float, typer.Option(help="Of matrices.", rich_help_panel=OPTIMISATION)]
WarmupEpochs = Annotated[
    float | None,
    typer.Option(
        help="Epochs of linear warm-up.",
        rich_help_panel=OPTIMISATION,
        show_default="a twentieth of the run",
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Run folder.", rich_help_panel=RUN, show_default="runs/MODEL[-NUMBER]")
]
Resume = Annotated[
    str,
    typer.Option(
        help="auto: the same command goes on where it stopped.", metavar="auto|never", rich_help_panel=RUN
    ),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        help="Steps between checkpoints.",
        rich_help_panel=RUN,
        show_default="an epoch or a 50th, at most 2000",
    ),
]
KeepLast = Annotated[int, typer.Option(help="Newest checkpoints to keep.", rich_help_panel=RUN)]
KeepEveryEpochs = Annotated[
    int | None,
    typer.Option(
        help="Keep those at the end of every so many epochs for good.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
StuckAfter = Annotated[
    float,
    typer.Option(help="Seconds without progress after which to end the run; 0: never.", rich_help_panel=RUN),
]
LogTo = Annotated[
    str | None,
    typer.Option(
        help="Log figures there as well; they must be installed.",
        metavar="wandb,mlflow",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
StopAfter = Annotated[
    int | None,
    typer.Option(help="Save and leave after so many steps.", rich_help_panel=RUN, show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUN)]
DsConfig = Annotated[
    str,
    typer.Option(
        help="DeepSpeed configuration: zero0 to zero3, zero2_offload, zero3_offload, zero3_nvme, or a file.",
        metavar="NAME|PATH",
        rich_help_panel=MACHINE,
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(help="Processes on this machine, one a GPU.", rich_help_panel=MACHINE, show_default="1"),
]
Hostfile = Annotated[
    Path | None,
    typer.Option(help="DeepSpeed hostfile: machines to run on.", rich_help_panel=MACHINE, show_default=False),
]
Launched = Annotated[Path | None, typer.Option(hidden=True)]
