"""Whole runs on a GPU: the CPU's figures, resumed to the bit, killed, offloaded, compiled, out of memory, looked at."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import begin, command, wait_until
from devices import DEVICE, only_on_cuda
from safetensors.torch import load_file
from small_runs import course, lines, same_weights, small, weights_of
from untrained_runs import load

from coma.doctor.examine import checks, examine
from coma.errors import ComaError
from coma.evaluation.score_run import score_run
from coma.exports.export import export_run
from coma.forecast.estimate import estimate
from coma.pictures.look import look_at
from coma.pictures.reconstruct import reconstruct_run
from coma.runs.read import load_autoencoder
from coma.training import PretrainConfig, pretrain
from coma.training.logs.usage import peak_tflops
from coma.training.processes.world import free_port

pytestmark = pytest.mark.timeout(600)

ON_GPU = "gpu" if DEVICE == "cuda" else "auto"
START_S = 300.0


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with all that a run does between them."""
    run = tmp_path_factory.mktemp("trained") / "run"
    pretrain(small(data, run, evaluate_every=1))
    return run


def single_precision(folder: Path) -> str:
    path = folder / "fp32.json"
    path.write_text('{"zero_optimization": {"stage": 1}, "bf16": {"enabled": false}}')
    return str(path)


@pytest.mark.gpu
def test_in_float32_losses_are_the_cpus(data: Path, tmp_path: Path) -> None:
    options, log = ["--steps", "4", "--decode", "cpu", "--ds-config", single_precision(tmp_path)], tmp_path / "log"
    assert begin(command(data, tmp_path / "here", *options), log).wait(START_S) == 0, log.read_text()
    on_cpu = begin(command(data, tmp_path / "cpu", *options), log, CUDA_VISIBLE_DEVICES="")
    assert on_cpu.wait(START_S) == 0, log.read_text()
    for mine, its in zip(lines(tmp_path / "here"), lines(tmp_path / "cpu"), strict=True):
        assert mine["batch_digest"] == its["batch_digest"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=2e-3)
        assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=2e-2)


@pytest.mark.gpu_too
def test_bf16_is_the_default_and_a_float32_copy_is_kept(trained: Path) -> None:
    resolved = json.loads((trained / "config.json").read_text())["resolved"]
    assert resolved["device"] == DEVICE
    weights = weights_of(trained)["backbone.stages.0.blocks.0.mlp.fc1.weight"]
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())  # what bf16 does not hold is not lost
    if DEVICE == "cuda":
        assert resolved["precision"] == "bf16"


# Attention over more than 128 keys, whose backward pass adds up in an order of its own; and a convolution.
NETWORKS: dict[str, dict[str, Any]] = {
    "dyvit": {"model": "dyvit_nano", "patch_size": 2, "image_size": 144},
    "vit": {"model": "vit_tiny_patch16_224", "method": "mae", "image_size": 256, "patch_size": None},
}


@pytest.mark.gpu
@pytest.mark.parametrize(("network", "decode"), [("dyvit", "cpu"), ("dyvit", ON_GPU), ("vit", "cpu")])
def test_stopped_and_gone_on_is_to_the_bit_never_stopped(data: Path, tmp_path: Path, network: str, decode: str) -> None:
    """If this fails where images are decoded on the GPU alone, it is the decoder that is not repeatable."""
    config = dataclasses.replace(small(data, tmp_path / "whole", decode=decode, steps=3), **NETWORKS[network])
    pretrain(config)
    again = dataclasses.replace(config, out=tmp_path / "run")
    pretrain(dataclasses.replace(again, stop_after=1))
    pretrain(again)
    assert [line[0] for line in course(tmp_path / "run")] == [1, 2, 3]
    assert course(tmp_path / "run") == course(tmp_path / "whole")
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert same_weights(tmp_path / "run", tmp_path / "whole", "optimizer-00000")


@pytest.mark.gpu
def test_killed_and_started_again_is_to_the_bit_never_killed(data: Path, tmp_path: Path) -> None:
    options, log = ["--steps", "12", "--save-every", "2"], tmp_path / "log"
    again, run = command(data, tmp_path / "killed", *options), tmp_path / "killed"
    process = begin(again, log)
    assert wait_until(lambda: (run / "checkpoints" / "step-000004").exists(), START_S, process), log.read_text()
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert begin(again, log).wait(START_S) == 0, log.read_text()
    assert begin(command(data, tmp_path / "whole", *options), log).wait(START_S) == 0, log.read_text()
    assert [line[0] for line in course(run)] == list(range(1, 13))
    assert course(run) == course(tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")
    assert "Traceback" not in log.read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("ds_config", ["zero2_offload", "zero3_offload", "zero3_nvme"])
def test_an_offloaded_run_takes_the_same_steps(data: Path, tmp_path: Path, trained: Path, ds_config: str) -> None:
    pretrain(small(data, tmp_path / "run", ds_config=ds_config))
    expected = [line for line in lines(trained) if "loss" in line]
    for mine, its in zip(lines(tmp_path / "run"), expected, strict=True):
        assert mine["batch_digest"] == its["batch_digest"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-2)


@pytest.mark.gpu_too
def test_scores_within_a_run_and_after_it_are_the_cpus(data: Path, trained: Path) -> None:
    within = [line for line in lines(trained) if "knn" in line][-1]
    there, here = (score_run(trained, data, device=device) for device in (DEVICE, "cpu"))
    assert there["device"] == DEVICE
    for name in ("knn", "probe"):
        assert there[name] == pytest.approx(here[name], abs=25.0), name  # an image of the few tested
    assert there["rankme"] == pytest.approx(here["rankme"], rel=0.05)
    assert within["rankme"] == pytest.approx(there["rankme"], rel=0.05)


@pytest.mark.gpu_too
def test_pictures_export_and_features_of_a_gpus_run(data: Path, trained: Path, tmp_path: Path) -> None:
    assert reconstruct_run(trained, out=tmp_path / "reconstruction.png", device=DEVICE).stat().st_size > 1000
    path, gates = look_at(trained, out=tmp_path / "look.png", device=DEVICE)
    assert path.stat().st_size > 1000
    assert gates
    export_run(trained, tmp_path / "export")
    model, images = load(tmp_path / "export"), torch.randn(2, 3, 32, 32)
    autoencoder = load_autoencoder(trained, DEVICE)
    with torch.no_grad():
        features = autoencoder.backbone.forward_features(images.to(DEVICE)).mean(dim=(1, 2)).cpu()
        torch.testing.assert_close(model(images), features, atol=1e-3, rtol=1e-3)
    assert {value.device.type for value in load_file(tmp_path / "export" / "model.safetensors").values()} == {"cpu"}


@pytest.mark.gpu_too
def test_usage_is_in_the_metrics(trained: Path) -> None:
    name = json.loads((trained / "config.json").read_text())["resolved"]["device_name"]
    steps = [line for line in lines(trained) if "loss" in line]
    assert all(line["memory_gib"] > 0 and line["model_tflops"] > 0 for line in steps)
    if DEVICE == "cuda":
        assert name == torch.cuda.get_device_name()
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        assert all(line["memory_gib"] < total for line in steps)
        assert all(("mfu" in line) == (peak_tflops(name, "bf16") is not None) for line in steps)
        assert all(0 < line.get("mfu", 0.5) < 1 for line in steps)


@pytest.mark.gpu_too
def test_a_plan_measures_the_device(data: Path, tmp_path: Path) -> None:
    forecast = estimate(small(data, tmp_path / "run"))
    assert forecast.measured is not None
    assert forecast.measured.forward_backward_s > 0
    if DEVICE == "cuda":
        assert forecast.device_bytes == torch.cuda.get_device_properties(0).total_memory
        assert forecast.resolved.precision == "bf16"


@pytest.mark.gpu
def test_the_doctor_finds_nothing_wrong() -> None:
    names = ("GPU", "NCCL", "gloo", "compiler", "DeepSpeed", "decoding")
    found = dict(examine({name: check for name, check in checks().items() if name in names}))
    assert set(found) == set(names)
    for name, finding in found.items():
        assert finding.status != "problem", f"{name}: {finding}"
    if DEVICE == "cuda":
        assert torch.cuda.get_device_name(0) in found["GPU"].text
        assert found["NCCL"].text.startswith("version ")
        assert found["decoding"].text == "a JPEG, on the cpu and on the gpu"


@pytest.mark.gpu
@only_on_cuda
def test_compiled_it_takes_the_same_steps_and_goes_on(data: Path, tmp_path: Path, trained: Path) -> None:
    config = small(data, tmp_path / "run", compile=True)
    pretrain(dataclasses.replace(config, stop_after=2))
    pretrain(config)
    expected = [line for line in lines(trained) if "loss" in line]
    for mine, its in zip(lines(tmp_path / "run"), expected, strict=True):
        assert mine["batch_digest"] == its["batch_digest"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-2)


@pytest.mark.gpu
@only_on_cuda
def test_too_little_memory_is_one_line_with_the_flag_that_helps(data: Path, tmp_path: Path) -> None:
    config = PretrainConfig(data=data, out=tmp_path / "run", model="dyvit_base", steps=1, batch_size=64, workers=2)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(3e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ComaError, match=r"memory.*--(micro-)?batch-size") as caught:
            pretrain(config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (1, 2)


@pytest.mark.gpu
@only_on_cuda
def test_more_processes_than_gpus_are_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    asked = torch.cuda.device_count() + 1
    done = subprocess.run(
        command(data, tmp_path / "run", "--steps", "2", "--devices", str(asked)),
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"--devices {asked}" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@only_on_cuda
def test_two_ranks_on_one_gpu_are_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    """NCCL would hang, or fail with a traceback."""
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    both = [
        begin(
            command(data, tmp_path / "run", "--steps", "2"),
            log,
            **launcher,
            CUDA_VISIBLE_DEVICES="0",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank, log in enumerate(logs)
    ]
    assert [process.wait(START_S) for process in both] == [2, 2]
    said = "".join(log.read_text() for log in logs)
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "one GPU" in errors[0]
