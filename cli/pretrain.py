"""`coma pretrain`."""

from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.cli.training import Launched, train
from coma.training import PretrainConfig


@from_options(PretrainConfig, file=True)
def pretrain(config: PretrainConfig, launched: Launched = None, json: Json = False) -> None:
    """Pre-train a vision backbone on complementary views of images.

    The same command resumes where it stopped. Under deepspeed, torchrun or
    srun it joins their processes.
    """
    train(config, json=json)
