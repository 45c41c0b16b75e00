"""What stands after training is found and read without DeepSpeed, and what is missing is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from coma.errors import DataError
from coma.runs.read import build_model, latest_checkpoint, load_autoencoder, read_config, run_of
from coma.shards.files import hash_file
from coma.training.config.options import PretrainConfig

CONFIG = PretrainConfig(model="dyvit_tiny", image_size=64, patch_size=2).to_json()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build_model(CONFIG).state_dict()


@pytest.fixture
def run(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A run folder with two checkpoints, the newer one named by `latest`."""
    run = tmp_path / "run"
    for step in (1, 2):
        folder = run / "checkpoints" / f"step-{step:06}"
        folder.mkdir(parents=True)
        scaled = {name: (value * step).contiguous() for name, value in weights.items()}
        save_file(scaled, folder / "weights.safetensors")
    (run / "checkpoints" / "latest").write_text("step-000002\n")
    (run / "config.json").write_text(json.dumps({"config": CONFIG, "resolved": {}, "versions": {}}))
    return run


def test_a_run_is_its_newest_checkpoint(run: Path, weights: dict[str, torch.Tensor]) -> None:
    assert latest_checkpoint(run) == run / "checkpoints" / "step-000002"
    model = load_autoencoder(run)
    assert not model.training
    name = "decoder.head.weight"
    assert torch.equal(model.state_dict()[name], 2 * weights[name])
    older = load_autoencoder(run / "checkpoints" / "step-000001")
    assert torch.equal(older.state_dict()[name], weights[name])
    assert run_of(run / "checkpoints" / "step-000001")[0] == run


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"config": CONFIG}))
    with pytest.raises(DataError, match="no checkpoint yet"):
        load_autoencoder(tmp_path)


def test_latest_must_name_a_folder_beside_it(run: Path) -> None:
    for name in ("../..", "step-000009", ""):
        (run / "checkpoints" / "latest").write_text(name)
        assert latest_checkpoint(run) is None


def test_what_is_no_run_is_named(tmp_path: Path, run: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, named in ((tmp_path / "absent", "no such folder"), (file, "a file"), (tmp_path, "config.json")):
        with pytest.raises(DataError, match=named):
            load_autoencoder(path)
    (run / "config.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_config(run)


def test_weights_that_do_not_fit_are_refused(run: Path) -> None:
    path = run / "checkpoints" / "step-000002" / "weights.safetensors"
    save_file({"decoder.head.weight": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="does not fit"):
        load_autoencoder(run)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"weights\.safetensors"):
        load_autoencoder(run)
    path.unlink()
    with pytest.raises(DataError, match=r"has no weights\.safetensors"):
        load_autoencoder(run)


@pytest.mark.slow
def test_reading_a_run_needs_no_deepspeed(run: Path) -> None:
    code = f"import sys, pathlib, coma.runs.read as r; r.load_autoencoder(pathlib.Path({str(run)!r}))"
    code += "; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_whose_bytes_have_changed_are_not_computed_with(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-000002"
    path = checkpoint / "weights.safetensors"
    (checkpoint / "checkpoint.json").write_text(json.dumps({"files": {path.name: {"xxh3_64": hash_file(path)}}}))
    load_autoencoder(run)
    data = bytearray(path.read_bytes())
    data[-5000] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"weights.safetensors is damaged, its bytes have changed"):
        load_autoencoder(run)
