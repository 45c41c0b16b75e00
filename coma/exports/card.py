"""Model card of an export, as the Hub shows it: facts, training, scores, and how to load the weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from coma.exports.folder import CURVES_NAME, DECODER_NAME, ONNX_NAME, SECTION
from coma.installed.versions import DISTRIBUTION
from coma.runs.lines import is_number, readable_lines
from coma.runs.names import METRICS_NAME
from coma.shards.files import without_credentials
from coma.shards.images.options import pixels_in_words

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

_ACCURACIES = {
    "probe": "linear probe",
    "probe_dinov2": "linear probe",
    "probe_mae": "linear probe",
    "knn": "20 nearest neighbours",
    "accuracy": "classification",
}
"""Scores that the Hub shows as accuracies, each with the task that it calls them results of."""
_TRANSFORM = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
_OWN = "its own"
"""The data that a run was trained on, in a table of scores."""


def card(
    run: Path,
    content: dict[str, Any],
    config: dict[str, Any],
    *,
    step: int,
    parameters: int,
    onnx: bool,
    repository: str | None = None,
    curves: bool = False,
) -> str:
    """Return the text of the card of a run's weights after `step`.

    Args:
        run: run folder, whose metrics.jsonl is read.
        content: the run's config.json.
        config: the export's config.json.
        step: number of steps that the weights were trained for.
        parameters: number of parameters of the backbone.
        onnx: whether the export has an ONNX file.
        repository: OWNER/NAME on the Hub; None: it is a folder.
        curves: whether the export has a picture of the loss and the scores.
    """
    lines, classes = metrics_until(run, step), config["num_classes"]
    blocks = [
        _front_matter(config, content, lines, repository),
        f"# {config['architecture']}, "
        + (f"fine-tuned on {classes} classes" if classes else "pre-trained on images without labels"),
        _table(_facts(content, config, lines, step, parameters)),
        "## Loading it",
        _loading(config, onnx, repository),
        "## How it was trained",
        _table(_training(content, lines)),
    ]
    if curves:
        blocks.append(f"![Loss and scores during training]({CURVES_NAME})")
    if scores := _scores(lines):
        blocks += ["## What it is worth" if classes else "## What its frozen features are worth", scores]
    return "\n\n".join(blocks) + "\n"


def _front_matter(
    config: dict[str, Any], content: dict[str, Any], lines: list[dict[str, Any]], repository: str | None
) -> str:
    license = json.dumps(config["pretrained_cfg"]["license"])
    task = "image-classification" if config["num_classes"] else "image-feature-extraction"
    tags = (task, "timm", "coma", "self-supervised")
    head = ["---", "library_name: timm", f"pipeline_tag: {task}", f"license: {license}"]
    head += ["tags:", *(f"- {tag}" for tag in tags)]
    more: dict[str, Any] = {}
    if base := _base_model(content):
        more["base_model"] = base
    if data := re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", str(content.get("resolved", {}).get("data"))):
        more["datasets"] = [data[1]]
    if results := _results(lines, content):
        name = repository.rpartition("/")[2] if repository else config["architecture"]
        more["model-index"] = [{"name": name, "results": results}]
    text = yaml.safe_dump(more, sort_keys=False, width=10**6).rstrip("\n") if more else ""
    return "\n".join([*head, *([text] if text else []), "---"])


def _base_model(content: dict[str, Any]) -> str | None:
    """Return the repository of the Hub whose weights the run started from; None if they are from elsewhere."""
    start = content.get("resolved", {}).get("init") or {}
    hub = re.fullmatch(r"hf.hub:([\w.-]+/[\w.-]+)(@.*)?", str(start.get("source")))
    if hub:
        return hub[1]
    by_timm = re.fullmatch(r"(\w+\.\w+) of timm", str(start.get("words")))  # with the name of its weights
    return f"timm/{by_timm[1]}" if by_timm else None


def _results(lines: list[dict[str, Any]], content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the newest accuracies as results of the Hub's model index."""
    own = _data(content.get("resolved", {}).get("data"))
    results = []
    for (name, data), (value, step) in sorted(_newest(lines).items()):
        if name in _ACCURACIES:
            data = "".join(each if each.isprintable() else " " for each in (own if data == _OWN else data))
            results.append(
                {
                    "task": {"type": "image-classification", "name": _ACCURACIES[name]},
                    "dataset": {"type": re.sub(r"[^\w./-]+", "-", data), "name": data},
                    "metrics": [
                        {
                            "type": "accuracy",
                            "value": value,
                            "name": f"{_SCORES[name]}, after {step:,} steps",
                            "verified": False,
                        }
                    ],
                }
            )
    return results


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
        "images": f"{size} x {size} px"
        + (f", from {asked['start_size']} px on" if asked.get("start_size") else "")
        + (f", {pixels_in_words(pixels['channels'], pixels['dtype'])}" if (pixels := resolved.get("pixels")) else ""),
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
    if start := resolved.get("init"):
        shown = {"started from": _start(start)} | shown
    method = asked.get("method", "finetune")
    return {"method": _METHODS.get(method, str(method))} | shown


def _start(start: dict[str, Any]) -> str:
    """Return what weights a run started from."""
    source = str(start.get("source", "?"))
    elsewhere = "/" not in source or source.startswith("hf")
    return f"{source}, {start.get('words', '?')}" if elsewhere else str(start.get("words", "?"))


def _loading(config: dict[str, Any], onnx: bool, repository: str | None = None) -> str:
    channels, _, size = config["pretrained_cfg"]["input_size"]
    pixels = config[SECTION].get("pixels") or {"channels": 3, "dtype": "uint8"}
    ours = config["architecture"].startswith("dyvit_")
    needs = "With torch, timm 1.0.26 or newer" + (f" and {DISTRIBUTION} installed" if ours else " installed")
    classes, images = config["num_classes"], f"torch.zeros(1, {channels}, {size}, {size})"
    outputs = (
        f"logits = model({images})  # [1, {classes}]"
        if classes
        else f"features = model({images})  # [1, {config['num_features']}]"
    )
    other = "backbone" if classes else "classifier"
    given = "logits" if classes else "features"
    importing = "import coma  # makes timm know the model\nimport timm" if ours else "import timm"
    place = (
        "PATH is this folder, and\n`hf-hub:OWNER/NAME` takes the place of `local-dir:PATH` once it is on the Hub."
        if repository is None
        else f"`local-dir:PATH` takes the\nplace of `hf-hub:{repository}` where its files lie in a folder."
    )
    text = f"""{needs}; {place} Without `pretrained=True` timm makes
the same network with random weights.

```python
{importing}
import torch

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
{_TRANSFORM if _is_rgb(pixels) else preparing(pixels)}
{outputs}
maps = timm.create_model("local-dir:PATH", pretrained=True, features_only=True)
{other} = timm.create_model("local-dir:PATH", pretrained=True, num_classes={0 if classes else 10})
```"""
    if config[SECTION]["decoder"]:
        text += f"\n\n`{DECODER_NAME}` is for continued pre-training: `coma pretrain --init PATH`."
    if onnx:
        text += (
            f"\n\n`{ONNX_NAME}` takes `images` [any number, {channels}, {size}, {size}] and gives `{given}` and `map`."
        )
    return text if repository is None else text.replace('local-dir:PATH"', f'hf-hub:{repository}"')


def _is_rgb(pixels: dict[str, Any]) -> bool:
    return (pixels["channels"], pixels["dtype"]) == (3, "uint8") and not pixels.get("low")


def preparing(pixels: dict[str, Any]) -> str:
    """Return the code that makes the network's images of arrays, which timm's transforms do not take."""
    image = 'torch.from_numpy(array.astype("float32")).permute(2, 0, 1)[None]'
    if pixels["dtype"] == "uint8":
        image = f"({image} / 255)"
    limits = ""
    if pixels.get("low"):
        low, high = ([float(f"{each:.7g}") for each in pixels[name]] for name in ("low", "high"))
        limits = f"low, high = (torch.tensor(each).view(-1, 1, 1) for each in ({low}, {high}))\n"
        image += ".clamp(low, high)"
    return f"""cfg = model.pretrained_cfg
mean, std = (torch.tensor(cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
{limits}

def prepare(array):  # [H, W, {pixels["channels"]}] of {pixels["dtype"]}, the square to be seen
    image = {image}
    image = torch.nn.functional.interpolate(image, cfg["input_size"][1:], mode="bilinear", antialias=True)
    return (image - mean) / std

"""


def _scores(lines: list[dict[str, Any]]) -> str:
    """Return a table of the newest value of each score on each data set."""
    rows = [
        f"| {_SCORES[name]} | {value:.4g} | {step:,} | {_plain(data)} |"
        for (name, data), (value, step) in sorted(_newest(lines).items())
    ]
    return "\n".join(["| score | | step | data |", "|---|---|---|---|", *rows]) if rows else ""


def _newest(lines: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, int]]:
    """Return the newest value of each score on each data set, and its step."""
    newest: dict[tuple[str, str], tuple[float, int]] = {}
    for line in sorted(lines, key=lambda line: line.get("step", 0)):
        for name in _SCORES:
            if is_number(line.get(name)):
                place = line.get("data") or line.get("evaluated_on")
                newest[name, _data(place) if place else _OWN] = (line[name], line["step"])
    return newest


def metrics_until(run: Path, step: int) -> list[dict[str, Any]]:
    """Return the readable lines of metrics.jsonl up to `step`."""
    try:
        lines = list(readable_lines(run / METRICS_NAME))
    except OSError:
        return []
    return [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= step]


def _data(place: object) -> str:
    """Name a data set: by its URL, or by its folder's own name, as others need not know where it lay."""
    if isinstance(place, list) and place:  # several, each with its share
        return ", ".join(map(_data, place))
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
