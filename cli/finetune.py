"""`coma finetune`."""

from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.cli.training import Launched, train
from coma.training import FinetuneConfig


@from_options(FinetuneConfig, file=True)
def finetune(config: FinetuneConfig, launched: Launched = None, json: Json = False) -> None:
    """Fine-tune a pre-trained backbone on labelled images.

    A classifier is trained on top of it. The same command resumes where it
    stopped. The defaults are MAE's for ViT-B; deepspeed, torchrun and srun work
    as for coma pretrain.
    """
    train(config, json=json)
