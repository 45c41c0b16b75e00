from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from coma.deepspeed_configs import packaged
from coma.errors import UsageError
from coma.training.config.ds_config import DeepSpeedConfig, check_ds_config, read_ds_config
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import resolve


def written(folder: Path, content: Any) -> str:
    path = folder / "mine.json"
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", sorted(packaged()))
def test_every_packaged_configuration_is_right(name: str) -> None:
    file = read_ds_config(name)
    assert file == read_ds_config(f"{name}.json")
    assert file.stage == int(name[4])
    assert ("offload_optimizer" in file.content["zero_optimization"]) == name.endswith(("_offload", "_nvme"))


def test_a_file_goes_before_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero2.json").write_text('{"zero_optimization": {"stage": 3}}')
    assert read_ds_config("zero2.json").stage == 3
    assert read_ds_config("zero2").stage == 2


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not a JSON file"),
        ("[1]", "holds a list"),
        ("3", "holds a int"),
        ("", "not a JSON file"),
        (b"\xff\xfe{\x00}\x00", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ('{"gradient_clipping": 1, "gradient_clipping": 2}', "'gradient_clipping' stands twice"),
        ('{"optimizer": {"params": {"eps": 1e-8, "eps": 1e-6}}}', "'eps' stands twice"),
        *(
            ({"optimizer": {"type": kind, "params": {name: value}}}, f"optimizer.params.{name}' is .*AdamW: delete it")
            for kind in ("Adam", "AdamW")
            for name in ("adam_w_mode", "bias_correction")
            for value in (False, None)
        ),
        ({"optimizer": {"params": {"amsgrad": True, "torch_adam": False}}}, 'amsgrad\' goes with "torch_adam": true'),
        ({"gradient_cliping": 1.0}, "'gradient_cliping'.*did you mean 'gradient_clipping'"),
        (
            {"zero_optimization": {"stage": 2, "ovrlap_comm": True}},
            "zero_optimization.ovrlap_comm.*'overlap_comm'",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "offload_optimizer.devise.*'device'",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            'offload_optimizer.device\' is "nvme", which takes stage 3.*zero2_offload',
        ),
        (
            {
                "zero_optimization": {
                    "stage": 3,
                    "offload_optimizer": {"device": "cpu", "super_offload": True},
                }
            },
            "'zero_optimization.offload_optimizer.super_offload', which .* coma cannot save.*zero3_offload",
        ),
        (
            {"optimizer": {"params": {"foreach": True, "fused": True}}},
            "optimizer.params.foreach' goes with .* without the other",
        ),
        (
            {"optimizer": {"params": {"torch_adam": False, "fused": True}}},
            'optimizer.params.fused\' goes with "torch_adam": true',
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            'offload_param.device\' is "nvme".*make it "cpu"',
        ),
        ({"aio": {"block_size": 1}}, "'aio', which coma does not take: .*delete it"),
        (
            {"tensorboard": {"enabled": True}},
            "'tensorboard', which coma does not take: .*--log-to: delete it",
        ),
        ({"csv_monitor": 3}, "'csv_monitor', which coma does not take: coma logs"),
        ({"flops_profiler": {"enabled": True}}, "'flops_profiler'.*coma bench step.*: delete it"),
        ({"zero_force_ds_cpu_optimizer": False}, "'zero_force_ds_cpu_optimizer'.*changes nothing for AdamW"),
        ({"prescale_gradients": True}, "'prescale_gradients'.*not tested with coma: delete it"),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            "'zero_optimization.zero_quantized_weights'.*not tested with coma: delete it",
        ),
        (
            {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}},
            "'zero_optimization.zenflow'.*coma cannot save",
        ),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage.* 7"),
        ({"zero_optimization": {"stage": True}}, "'zero_optimization.stage' is true; it must be a number"),
        (
            {"zero_optimization": {"reduce_bucket_size": True}},
            "zero_optimization.reduce_bucket_size' is true",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "buffer_count": False}}},
            "offload_optimizer.buffer_count' is false; it must be a number",
        ),
        ({"fp16": {"enabled": True}}, "'fp16.enabled' true at ZeRO stage 0.*use stage 1"),
        (
            {"bf16": {"enabled": True, "check_grad_overflow": False}},
            "'bf16.check_grad_overflow' is false; it must be true",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "offload_optimizer.ratio' is 0.5, and coma cannot save",
        ),
        ({"fp16": {"loss_scale": True}}, "'fp16.loss_scale' is true"),
        (
            {"zero_optimization": {"stage3_prefetch_bucket_size": True}},
            "stage3_prefetch_bucket_size' is true",
        ),
        ({"zero_optimization": 2}, "'zero_optimization' is 2"),
        ({"bf16": {"enable": True}}, "bf16.enable.*'enabled'"),
        ({"train_batch_size": 0}, "'train_batch_size' is 0"),
        ({"train_micro_batch_size_per_gpu": 1.5}, "1.5"),
        ({"gradient_clipping": "1"}, "'gradient_clipping'"),
        ({"gradient_clipping": True}, "'gradient_clipping' is true"),
        ({"gradient_clipping": math.nan}, "'gradient_clipping' is NaN.*finite"),
        ({"gradient_clipping": math.inf}, "'gradient_clipping' is Infinity"),
        ('{"gradient_clipping": 1e999}', "'gradient_clipping' is Infinity"),
        ({"gradient_clipping": 10**400}, "'gradient_clipping' is 1000.*finite"),
        ({"steps_per_print": 0}, "'steps_per_print' is 0"),
        ({"wall_clock_breakdown": "no"}, "'wall_clock_breakdown' is \"no\".*true or false"),
        ({"bf16": {"enabled": "false"}}, "'bf16.enabled' is \"false\".*true or false"),
        (
            {"bf16": {"enabled": True}, "fp16": {"enabled": True}},
            "'bf16.enabled' and 'fp16.enabled'.*keep one",
        ),
        (
            {"bf16": {"enabled": True}, "torch_autocast": {"enabled": True}},
            "'bf16.enabled' and 'torch_autocast.enabled'.*keep one",
        ),
        ({"torch_autocast": {"dtype": "float17"}}, "'torch_autocast.dtype' is \"float17\".*must be bfloat16"),
        (
            {"torch_autocast": {"enabled": True, "dtype": "float16"}},
            "must be bfloat16; for float16 use 'fp16'",
        ),
        (
            {"zero_optimization": {"cpu_offload": True}},
            "cpu_offload', an old name.*'offload_optimizer'",
        ),
        (
            {"zero_optimization": {"stage3_gather_fp16_weights_on_model_save": True}},
            "fp16_weights.*, an old name.*'gather_16bit_weights_on_model_save'",
        ),
        ({"torch_autocast": {"dtype": None}}, "'torch_autocast.dtype' is null"),
        (
            {"torch_autocast": {"lower_precision_safe_modules": ["torch.nn.Linear"]}},
            "'torch_autocast.lower_precision_safe_modules'.*not tested with coma: delete it",
        ),
        (
            {"communication_data_type": "float32"},
            "'communication_data_type' is \"float32\"; it must be bf16, fp16 or fp32",
        ),
        ({"communication_data_type": 16}, "'communication_data_type' is 16"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "'data_types'.*not tested with coma: delete it"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler'.*--base-lr"),
        ({"optimizer": {"type": "Lamb"}}, "'Lamb'.*AdamW"),
        ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.params.lr.*--base-lr"),
        ({"optimizer": {"params": {"weight_decay": 0.1}}}, "--weight-decay"),
        ({"optimizer": {"params": {"beta": [0.9, 0.95]}}}, "optimizer.params.beta.*'betas'"),
        ({"optimizer": {"params": {"betas": 0.9}}}, "optimizer.params.betas' is 0.9.*two numbers"),
        ({"optimizer": {"params": {"betas": [0.9]}}}, "optimizer.params.betas"),
        ({"optimizer": {"params": {"betas": [0.9, 1.0]}}}, "optimizer.params.betas.*below 1"),
        ({"optimizer": {"params": {"betas": [-0.1, 0.9]}}}, "optimizer.params.betas"),
        ({"optimizer": {"params": {"betas": ["0.9", 0.95]}}}, "optimizer.params.betas"),
        ({"optimizer": {"params": {"betas": [0.9, "auto"]}}}, "'optimizer.params.betas.1' is \"auto\""),
        ({"optimizer": {"params": {"betas": [0.9, math.nan]}}}, "'optimizer.params.betas.1' is NaN"),
        ({"optimizer": {"params": {"eps": 0}}}, "optimizer.params.eps' is 0.*above 0"),
        ({"optimizer": {"params": {"eps": "1e-8"}}}, "optimizer.params.eps"),
        ({"optimizer": {"params": {"eps": None}}}, "optimizer.params.eps' is null"),
        ({"optimizer": {"params": {"torch_adam": "no"}}}, 'optimizer.params.torch_adam\' is "no"'),
        ({"optimizer": {"parms": {}}}, "optimizer.parms.*'params'"),
        ({"optimizer": "AdamW"}, "'optimizer' is \"AdamW\""),
        ({"elasticity": {"enabled": True}}, "'elasticity'"),
    ],
)
def test_what_deepspeed_would_swallow_is_refused(tmp_path: Path, content: Any, named: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError, match=named) as caught:
        read_ds_config(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"communication_data_type": "FP32"},
        {"bf16": {"enabled": True}, "train_batch_size": 8},
        {"torch_autocast": {"enabled": True}, "wall_clock_breakdown": True},
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "overlap_comm": True}},
    ],
)
def test_what_deepspeed_takes_is_taken(tmp_path: Path, content: dict[str, Any]) -> None:
    assert read_ds_config(written(tmp_path, content)).content == content


def test_a_misspelt_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"zero2_offload.*did you mean 'zero3'"):
        read_ds_config("zeros3.json")


def test_precision_is_the_files_where_it_says_so() -> None:
    assert check_ds_config({}, "f").precision is None
    assert check_ds_config({"bf16": {"enabled": True}}, "f").precision == "bf16"
    assert check_ds_config({"bf16": {"enabled": False}}, "f").precision == "fp32"
    assert check_ds_config({"torch_autocast": {"enabled": True}}, "f").precision == "bfloat16 autocast"


def filled_in(content: dict[str, Any], *, has_bf16: bool = False) -> DeepSpeedConfig:
    facts: dict[str, Any] = {"data": "d", "fingerprint": "f", "samples_per_epoch": 99, "world_size": 1}
    config = PretrainConfig(batch_size=8, weight_decay=0.1)
    run = resolve(config, check_ds_config(content, "f"), **facts, device="cuda", has_bf16=has_bf16)
    return run.deepspeed


def test_autocast_is_in_bfloat16_on_a_gpu_too() -> None:
    done = filled_in({"torch_autocast": {"enabled": True}}, has_bf16=True).to_json()
    assert done["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in done


def test_the_json_is_that_of_earlier_versions() -> None:
    """What config.json of a run holds as `resolved.deepspeed`, and by which a run that goes on is recognised."""
    content = {
        "gradient_clipping": 0.5,
        "optimizer": {"params": {"eps": 1e-6}},
        "train_micro_batch_size_per_gpu": 2,
    }
    config = filled_in(content, has_bf16=True)
    params = {"betas": [0.9, 0.95], "torch_adam": True, "eps": 1e-6, "weight_decay": 0.1}
    same = {"gradient_clipping": 0.5, "steps_per_print": 1_000_000_000, "bf16": {"enabled": True}}
    assert config.identity() == {**same, "optimizer": {"type": "AdamW", "params": params}}
    assert config.to_json() == {
        **same,
        "zero_optimization": {"stage": 0},
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "AdamW", "params": {**params, "lr": 0.0, "fused": True}},
    }
    assert content["optimizer"] == {"params": {"eps": 1e-6}}


def test_every_value_is_typed() -> None:
    content = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "overlap_comm": True},
        "optimizer": {"params": {"betas": [0.8, 0.99]}},
        "gradient_accumulation_steps": 2,
    }
    config = check_ds_config(content, "f")
    assert (config.stage, config.batch_size, config.accumulation) == (2, None, 2)
    assert (config.gradient_clipping, config.betas) == (1.0, (0.8, 0.99))
    assert (config.bucket_elements, config.buckets) == (500_000_000, 2)
    assert (config.optimizer_device, config.parameter_device, config.nvme_path) == ("none", "none", None)
    assert filled_in(content).betas == (0.8, 0.99)
    offloaded = read_ds_config("zero3_nvme")
    assert (offloaded.optimizer_device, offloaded.parameter_device) == ("nvme", "cpu")


@pytest.mark.parametrize("given", [{"foreach": True}, {"torch_adam": False}, {"fused": False}])
def test_the_fused_kernel_is_the_default_of_torchs_adamw_alone(given: dict[str, bool]) -> None:
    assert not filled_in({"optimizer": {"params": given}}).to_json()["optimizer"]["params"].get("fused")


def test_auto_means_what_coma_derives() -> None:
    """As in the files that transformers and accelerate users have."""
    content = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
    without = {"optimizer": {"type": "AdamW", "params": {}}, "zero_optimization": {"stage": 2}}
    done = filled_in(content, has_bf16=True)
    assert done.to_json() == filled_in(without, has_bf16=True).to_json()
    assert done.auto_values() == {
        "bf16.enabled": True,
        "fp16.enabled": "DeepSpeed's default",
        "optimizer.params.lr": "set by coma",
        "optimizer.params.betas": [0.9, 0.95],
        "optimizer.params.eps": "DeepSpeed's default",
        "optimizer.params.weight_decay": 0.1,
        "zero_optimization.reduce_bucket_size": "DeepSpeed's default",
        "gradient_clipping": 1.0,
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8,
    }
