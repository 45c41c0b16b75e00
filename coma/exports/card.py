"""Model card of an export, as the Hub shows it: facts, training, scores, and how to load the weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from coma.exports.folder import DECODER_NAME, ONNX_NAME, SECTION
from coma.runs.lines import is_number, readable_lines
from coma.runs.names import METRICS_NAME
from coma.shards.files import without_credentials
from coma.versions import DISTRIBUTION

_METHODS = {
    "coma": "CoMA, complementary masking ([arXiv 2511.05929](https://arxiv.org/abs/2511.05929))",
    "independent": "random masks that do not complement each other",
    "finetune": "fine-tuning on labels",
    "mae": "MAE, a masked autoencoder ([arXiv 2111.06377](https://arxiv.org/abs/2111.06377))",
}
_SCORES = {
    "probe": "linear probe, top-1 %",
    "probe_dinov2": "linear probe as DINOv2's, top-1 %",
    "probe_mae": "linear probe as MAE's, top-1 %",
    "knn": "20 nearest neighbours, top-1 %",
    "accuracy": "accuracy, top-1 %",
    "accuracy_top5": "accuracy, top-5 %",
    "rankme": "RankMe, effective rank of the features",
    "miou": "segmentation by logistic regression of patches, mIoU %",
    "miou_dinov2": "segmentation by a linear layer as DINOv2's, mIoU %",
    "miou_knn": "segmentation by nearest neighbours of patches, mIoU %",
}


def card(run: Path, content: dict[str, Any], config: dict[str, Any], *, step: int, parameters: int, onnx: bool) -> str:
    """Return the text of the card of a run's weights after `step`.

    Args:
        run: run folder, whose metrics.jsonl is read.
        content: the run's config.json.
        config: the export's config.json.
        step: number of steps that the weights were trained for.
        parameters: number of parameters of the backbone.
        onnx: whether the export has an ONNX file.
    """
    lines, classes = _metrics(run, step), config["num_classes"]
    blocks = [
        _front_matter(config),
        f"# {config['architecture']}, "
        + (f"fine-tuned on {classes} classes" if classes else "pre-trained on images without labels"),
        _table(_facts(content, config, lines, step, parameters)),
        "## Loading it",
        _loading(config, onnx),
        "## How it was trained",
        _table(_training(content, lines)),
    ]
    if scores := _scores(lines):
        blocks += ["## What it is worth" if classes else "## What its frozen features are worth", scores]
    return "\n\n".join(blocks) + "\n"


def _front_matter(config: dict[str, Any]) -> str:
    license = json.dumps(config["pretrained_cfg"]["license"])
    task = "image-classification" if config["num_classes"] else "image-feature-extraction"
    tags = (task, "timm", "coma", "self-supervised")
    lines = ["---", "library_name: timm", f"pipeline_tag: {task}", f"license: {license}"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _facts(
    content: dict[str, Any], config: dict[str, Any], lines: list[dict[str, Any]], step: int, parameters: int
) -> dict[str, str]:
    resolved = content.get("resolved", {})
    steps = resolved.get("steps")
    batch_size, samples = resolved.get("batch_size"), resolved.get("samples_per_epoch")
    facts = {
        "parameters": f"{parameters / 1e6:.1f} M",
        "features": f"{config['num_features']} channels",
        "data": _data(resolved.get("data")) + (f", {samples:,} images" if samples else ""),
        "step": f"{step:,}" + (f" of {steps:,}" if steps else ""),
    }
    if batch_size and samples:
        facts["images seen"] = f"{step * batch_size:,}, {step * batch_size / samples:.4g} epochs"
    if spent_s := sum(line["step_s"] for line in lines if is_number(line.get("step_s"))):
        devices = resolved.get("world_size", 1)
        device = resolved.get("device_name", resolved.get("device", "unknown"))
        facts["time"] = f"{spent_s / 3600:.3g} hours of training on {devices} x {device}"
    facts["license"] = config["pretrained_cfg"]["license"]
    return facts


def _training(content: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, str]:
    asked, resolved = content["config"], content.get("resolved", {})
    size = resolved.get("network", asked)["image_size"]
    facts: dict[str, Any] = {
        "images": f"{size} x {size} px" + (f", from {asked['start_size']} px on" if asked.get("start_size") else ""),
        "views of an image": asked.get("views") if asked.get("method") != "mae" else None,
        "batch": resolved.get("batch_size"),
        "peak learning rate": resolved.get("peak_lr"),
        "weight decay": asked.get("weight_decay"),
        "precision": resolved.get("precision"),
        "seed": asked.get("seed"),
        "last loss": next((line["loss"] for line in reversed(lines) if is_number(line.get("loss"))), None),
        "fingerprint of the data": resolved.get("fingerprint"),
    }
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in facts.items()
        if value is not None
    }
    versions = {name: text for name, text in content.get("versions", {}).items() if name != "command"}
    if versions:
        shown["versions"] = ", ".join(f"{name} {text}" for name, text in versions.items())
    method = asked.get("method", "finetune")
    return {"method": _METHODS.get(method, str(method))} | shown


def _loading(config: dict[str, Any], onnx: bool) -> str:
    size = config["pretrained_cfg"]["input_size"][-1]
    ours = config["architecture"].startswith("dyvit_")
    needs = "With torch, timm 1.0.26 or newer" + (f" and {DISTRIBUTION} installed" if ours else " installed")
    classes, images = config["num_classes"], f"torch.zeros(1, 3, {size}, {size})"
    outputs = (
        f"logits = model({images})  # [1, {classes}]"
        if classes
        else f"features = model({images})  # [1, {config['num_features']}]"
    )
    other = "backbone" if classes else "classifier"
    given = "logits" if classes else "features"
    importing = "import coma  # makes timm know the model\nimport timm" if ours else "import timm"
    text = f"""{needs}; PATH is this folder, and
`hf-hub:OWNER/NAME` takes the place of `local-dir:PATH` once it is on the Hub. Without `pretrained=True` timm makes
the same network with random weights.

```python
{importing}
import torch

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
{outputs}
maps = timm.create_model("local-dir:PATH", pretrained=True, features_only=True)
{other} = timm.create_model("local-dir:PATH", pretrained=True, num_classes={0 if classes else 10})
```"""
    if config[SECTION]["decoder"]:
        text += f"\n\n`{DECODER_NAME}` is for continued pre-training: `coma pretrain --init PATH`."
    if onnx:
        text += f"\n\n`{ONNX_NAME}` takes `images` [any number, 3, {size}, {size}] and gives `{given}` and `map`."
    return text


def _scores(lines: list[dict[str, Any]]) -> str:
    """Return a table of the newest value of each score on each data set."""
    newest: dict[tuple[str, str], tuple[float, int]] = {}
    for line in sorted(lines, key=lambda line: line.get("step", 0)):
        for name in _SCORES:
            if is_number(line.get(name)):
                newest[name, _data(line["data"]) if line.get("data") else "its own"] = (line[name], line["step"])
    rows = [
        f"| {_SCORES[name]} | {value:.4g} | {step:,} | {_plain(data)} |"
        for (name, data), (value, step) in sorted(newest.items())
    ]
    return "\n".join(["| score | | step | data |", "|---|---|---|---|", *rows]) if rows else ""


def _metrics(run: Path, step: int) -> list[dict[str, Any]]:
    """Return the readable lines of metrics.jsonl up to `step`."""
    try:
        lines = list(readable_lines(run / METRICS_NAME))
    except OSError:
        return []
    return [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= step]


def _data(place: object) -> str:
    """Name a data set: by its URL, or by its folder's own name, as others need not know where it lay."""
    if not isinstance(place, str) or not place:
        return "unknown"
    if "://" in place:
        return without_credentials(place)
    path = Path(place)
    return path.parent.name if path.name in ("train", "val") and path.parent.name else path.name


def _table(facts: dict[str, str]) -> str:
    rows = [f"| {name} | {text if name == 'method' else _plain(text)} |" for name, text in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _plain(text: str) -> str:
    """Escape text as Markdown that shows these very characters, on one line."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", shown)
