"""Export of the backbone as an ONNX file, for a runtime without Python."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from coma.errors import UsageError
from coma.installed.installation import installation

OPSET = 18


class Outputs(nn.Module):
    """Images [B, C, H, W] to pooled features [B, C], or a classifier's logits, and a last feature map [B, C, h, w]."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return both from one pass."""
        last, maps = self.backbone.forward_intermediates(images, indices=1, norm=True)  # type: ignore[operator]
        return self.backbone.forward_head(last), maps[-1]  # type: ignore[operator]


def write_onnx(backbone: nn.Module, size: tuple[int, int, int], path: Path) -> None:
    """Write the backbone to `path`.

    Its input is `images` [any number, C, H, W] of this one size (C, H, W); its outputs are `features` (`logits` of a
    classifier) and `map`.

    Raises:
        UsageError: onnx or onnxscript is not installed.
    """
    check_onnx()
    images = torch.zeros(2, *size)
    with _quiet():
        program = torch.onnx.export(
            Outputs(backbone).eval(),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits" if backbone.num_classes else "features", "map"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(path)


def check_onnx() -> None:
    """Check that onnx and onnxscript are installed.

    Raises:
        UsageError: one of them is not.
    """
    for library in ("onnx", "onnxscript"):
        try:
            __import__(library)
        except ImportError:
            raise UsageError(f"--onnx needs {library}: {installation().extra('onnx')}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages and warnings."""
    logger, before = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
