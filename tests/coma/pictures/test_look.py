"""What `coma look` shows is what the blocks do."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from coma.errors import UsageError
from coma.model.attention import attend_within
from coma.model.dyvit import DyViT
from coma.model.layout import to_map
from coma.pictures.look import columns_of, look, look_at, principal_colours
from coma.runs.read import build_model


@pytest.fixture(scope="module")
def backbone() -> DyViT:
    torch.manual_seed(0)
    return timm.create_model("dyvit_nano", num_classes=0, img_size=64).eval()


def _images(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_an_untrained_gate_prefers_nothing_and_a_turned_one_its_window_where_it_says(backbone: DyViT) -> None:
    attention = backbone.stages[2].blocks[1].attn
    sight = look(backbone, _images())
    assert [(g.stage, g.block) for g in sight.gates] == [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (3, 4)]
    assert all(g.weights == pytest.approx((1.0, 1.0)) for g in sight.gates)
    assert sight.preference[3] is None  # one group alone
    assert all(p is not None and not p.any() for p in sight.preference[:3])
    try:
        with torch.no_grad():
            attention.gate.weight[1, 7] = 5.0  # the wide group, where channel 7 is high
        turned = look(backbone, _images())
        seen: list[torch.Tensor] = []
        hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        backbone(_images())
        hook.remove()
    finally:
        attention.init_gate()
    weights = next(g.weights for g in turned.gates if (g.stage, g.block) == (3, 2))
    alpha = 2 * (5 * seen[0][..., 7]).sigmoid()
    assert weights == pytest.approx((2 - alpha.mean().item(), alpha.mean().item()), abs=1e-5)
    expected = to_map(((alpha - 1) / 4)[..., None], (2, 3))[..., 0]  # mean over four blocks, three of them even
    torch.testing.assert_close(turned.preference[2], expected)


def test_attention_of_the_middle_is_that_of_the_block(backbone: DyViT) -> None:
    """The block's own kernel, given one-hot values, returns its attention weights."""
    images, attention = _images(), backbone.stages[2].blocks[3].attn
    seen: list[torch.Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sight = look(backbone, images)
    hook.remove()
    x, d = seen[0], attention.head_dim
    n = x.shape[1]
    q, k = attention.q[1](x).reshape(2, n, 3, d), attention.kv(x).split(d, dim=-1)[2]
    one_hot = torch.eye(n, d).expand(2, n, d)  # 24 tokens, 32 channels: a channel a token
    with torch.no_grad():
        heads = [attend_within(q[:, :, h].contiguous(), k, one_hot, None, (n,)) for h in range(3)]
    weights = torch.stack(heads).mean(dim=0)[..., :n]
    raster = to_map(torch.arange(n)[None, :, None].float(), (2, 3))[0, ..., 0].long()
    expected = to_map(weights[:, raster[2, 3]][..., None], (2, 3))[..., 0]
    torch.testing.assert_close(sight.attended, expected)
    torch.testing.assert_close(sight.attended.sum(dim=(1, 2)), torch.ones(2))


def test_features_are_those_of_the_backbone_and_nothing_stays_behind(backbone: DyViT) -> None:
    before = backbone(_images())
    backbone.train()
    sight = look(backbone, _images())
    assert backbone.training
    backbone.eval()
    assert [tuple(m.shape) for m in sight.features] == [
        (2, 16, 24, 32),
        (2, 8, 12, 64),
        (2, 4, 6, 128),
        (2, 2, 3, 256),
    ]
    torch.testing.assert_close(sight.features[-1], backbone.forward_features(_images()))
    torch.testing.assert_close(backbone(_images()), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


def test_like_features_have_like_colours_and_the_first_component_is_red() -> None:
    generator = torch.Generator().manual_seed(1)
    strong, weak = torch.zeros(8), torch.zeros(8)
    strong[2], weak[5] = 10.0, 1.0
    sides = torch.zeros(2, 4, 4, 1)
    sides[:, :, 2:] = 1  # the right halves of both images
    features = sides * strong + torch.randn(2, 4, 4, 1, generator=generator) * weak
    colours = principal_colours(features)
    assert (colours[:, :, :2, 0] < 0.05).all()
    assert (colours[:, :, 2:, 0] > 0.95).all()
    green, noise = colours[..., 1].flatten(), features[..., 5].flatten()
    assert torch.corrcoef(torch.stack([green, noise]))[0, 1] > 0.95


def test_a_picture_has_a_column_for_each(backbone: DyViT) -> None:
    images = _images()
    columns = columns_of(backbone, images, look(backbone, images))
    assert [column.title for column in columns] == [
        "original",
        "features 2",
        "features 3",
        "features 4",
        "stage 1: 16 or 64 ±0.00",
        "stage 2: 4 or 16 ±0.00",
        "stage 3: 4 or all ±0.00",
        "attention",
    ]
    assert len({column.tiles.shape for column in columns}) == 1


def test_three_stages_do(tmp_path: Path) -> None:
    small = timm.create_model(
        "dyvit_nano",
        num_classes=0,
        img_size=32,
        patch_size=1,
        unit_size=4,
        dims=(32, 64, 128),
        depths=(1, 1, 2),
        head_dims=(16, 32, 32),
        heads=(((4, 1), (16, 1)), ((4, 2),), ((None, 4),)),
    )
    sight = look(small, _images(32, 32))
    assert sight.attended.shape == (2, 8, 8)
    assert [g.stage for g in sight.gates] == [1]
    assert len(columns_of(small, _images(32, 32), sight)) == 6


def test_a_size_that_does_not_fit_is_refused(backbone: DyViT) -> None:
    with pytest.raises(UsageError, match="image size 60x64 is not a multiple of the 32-pixel mask unit"):
        look(backbone, _images(60, 64))


def _run(folder: Path, model: str, method: str) -> Path:
    """A run folder as training leaves it, its weights those of initialisation."""
    config = {"model": model, "method": method, "views": 2, "image_size": 32, "patch_size": 2}
    checkpoint = folder / "checkpoints" / "step-000007"
    checkpoint.mkdir(parents=True)
    save_file(build_model(config).state_dict(), checkpoint / "weights.safetensors")
    (folder / "checkpoints" / "latest").write_text(checkpoint.name)
    (folder / "config.json").write_text(json.dumps({"config": config, "resolved": {}}))
    return folder


def test_a_run_is_looked_at(tmp_path: Path) -> None:
    files = [tmp_path / "images" / f"{i}.jpg" for i in range(3)]
    files[0].parent.mkdir()
    for i, file in enumerate(files):
        Image.linear_gradient("L").rotate(90 * i).convert("RGB").save(file)
    run, out = _run(tmp_path / "run", "dyvit_nano", "coma"), tmp_path / "new" / "seen.png"
    path, gates = look_at(run, [files[0].parent], out=out, count=3, image_size=64)
    assert path == out
    assert len(gates) == 6
    with Image.open(out) as picture:
        assert picture.height > 3 * 128
    with pytest.raises(UsageError, match=r"seen.txt is no name for a picture"):
        look_at(run, files, out=tmp_path / "seen.txt")
    with pytest.raises(UsageError, match="60x60 is not a multiple of the 16-pixel mask unit"):
        look_at(run, files, out=out, image_size=60)
    plain = _run(tmp_path / "plain", "vit_tiny_patch16_224", "mae")
    with pytest.raises(UsageError, match="VisionTransformer: only a DyViT has windows"):
        look_at(plain, files)
