"""Outside of Python: by torch.export and by ONNX, the features are the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from untrained_runs import load, write_run

from coma.errors import UsageError
from coma.exports.export import export_run
from coma.installed.installation import installation


@pytest.mark.slow
def test_torch_export_takes_the_backbone_whole(tmp_path: Path) -> None:
    """Any number of images, of any size: what is saved knows no Python."""
    torch.manual_seed(0)
    model = timm.create_model("dyvit_nano", num_classes=0).eval()
    model(torch.zeros(1, 3, 64, 96))  # what is kept of one size must not end in the program
    rows, columns = (torch.export.Dim(name, min=2) for name in ("rows", "columns"))  # of mask units
    shapes = ({0: torch.export.Dim("batch"), 2: 32 * rows, 3: 32 * columns},)
    program = torch.export.export(model, (torch.zeros(2, 3, 64, 96),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for shape in ((1, 3, 64, 96), (3, 3, 128, 64), (1, 3, 256, 160)):
            images = torch.randn(shape)
            torch.testing.assert_close(again(images), model(images), atol=1e-5, rtol=0)


def test_onnx_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=re.escape(f"onnxscript: {installation().extra('onnx')}")):
        export_run(tmp_path, tmp_path / "out", onnx=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method", "patch_size"), [("dyvit_nano", "coma", 2), ("vit_tiny_patch16_224", "mae", 8)]
)
def test_onnx_gives_the_same_features(model: str, method: str, patch_size: int, tmp_path: Path) -> None:
    import onnxruntime

    run = write_run(tmp_path / "run", model=model, method=method, image_size=64, patch_size=patch_size)
    result = export_run(run, tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(result["onnx"], providers=["CPUExecutionProvider"])
    backbone = load(tmp_path / "out")
    for count in (1, 3):
        images = torch.randn(count, 3, 64, 64)
        features, last = map(torch.from_numpy, session.run(["features", "map"], {"images": images.numpy()}))
        with torch.no_grad():
            torch.testing.assert_close(features, backbone(images), atol=1e-4, rtol=0)
            (expected,) = backbone.forward_intermediates(images, 1, norm=True, intermediates_only=True)
            torch.testing.assert_close(last, expected, atol=1e-4, rtol=0)
    assert "`model.onnx`" in (tmp_path / "out" / "README.md").read_text()
