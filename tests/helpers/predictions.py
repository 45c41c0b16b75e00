"""What a masked autoencoder predicts, which its loss compares with the true pixels."""

from torch import Tensor

from coma.model.autoencoder import MaskedAutoencoder


def predict_pixels(model: MaskedAutoencoder, images: Tensor, units: Tensor) -> Tensor:
    """Normalised pixels [B, W·T, P]: view after view, the units that each is to predict."""
    patches, grid = model.patchify(images, units)
    visible, hidden = model.split_units(units)
    predicted: Tensor = model.decoder(model.encode(patches, grid, visible), grid, visible, hidden)
    return predicted
