"""`--init`: a new run that starts from the weights of an earlier one, as `coma export` wrote them.

It starts at step 0 with an optimizer that knows nothing; a run that is begun goes on from its own checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coma.errors import UsageError
from coma.export.export import patch_size
from coma.export.folder import Export
from coma.model.encoders import give_weights
from coma.training.config.options import PretrainConfig

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder


def check(export: Export, config: PretrainConfig) -> None:
    """Refuse an export of another network; its images' size and its method need not be the run's.

    Raises:
        UsageError: naming both.
    """
    if export.model != config.model:
        raise UsageError(
            f"--init {export.folder} holds a {export.model}, and --model is {config.model}: give --model {export.model}"
        )


def take_up(model: MaskedAutoencoder, export: Export, config: PretrainConfig) -> None:
    """Give a network that was just made the weights of an export: the backbone's, and the decoder's if they are there.

    Raises:
        UsageError: its patches are others, or its decoder is of another method.
        DataError: the weights are damaged.
    """
    here = patch_size(model.backbone)
    if export.patch_size != here:
        raise UsageError(
            f"--init {export.folder} has patches of {export.patch_size} pixels, and this run's are {here}: "
            f"give --patch-size {export.patch_size}"
        )
    give_weights(model.backbone, export.weights(), export.folder)
    if not export.decoder:
        return
    try:
        model.decoder.load_state_dict(export.decoder_weights())
    except RuntimeError:
        raise UsageError(
            f"--init {export.folder} has the decoder of --method {export.method}, which is not that of --method "
            f"{config.method}: give --method {export.method}, or export without --with-decoder"
        ) from None
