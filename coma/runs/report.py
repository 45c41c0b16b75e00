"""Report of a run as one HTML file that needs neither network nor server: RUN/report.html.

It shows loss, speed and learning rate from metrics.jsonl, reconstructions during training, scores, damaged samples
and the configuration. Everything is embedded; every text is escaped, its control characters visibly.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median_high
from typing import Any

from PIL import Image

from coma.errors import ComaError
from coma.runs.charts import Curve, chart, smooth
from coma.runs.lines import is_number, read_lines
from coma.runs.names import LEDGER_NAME, METRICS_NAME, PREVIEWS_NAME, REPORT_NAME
from coma.runs.read import is_finetuned, read_config
from coma.runs.report_sources import by_source, span_of
from coma.runs.report_style import STYLE
from coma.shards.files import write_atomically
from coma.shards.text import visible_lines

Lines = Sequence[Mapping[str, Any]]

_MOST_PICTURES = 6
_PICTURE_WIDTH_PX = 1200
_SCORES = {
    "accuracy": "accuracy on val",
    "accuracy_top5": "top-5 on val",
    "probe": "linear probe",
    "probe_dinov2": "linear probe (DINOv2)",
    "probe_mae": "linear probe (MAE)",
    "knn": "20-NN",
    "rankme": "RankMe",
    "miou": "mIoU, logistic regression",
    "miou_dinov2": "mIoU, linear layer (DINOv2)",
    "miou_knn": "mIoU, neighbours",
}


def write_report(run: Path | str) -> Path:
    """Write RUN/report.html from what the run folder holds now, and return its path.

    Raises:
        DataError: `run` is no run folder, or its metrics are not JSON lines.
        ComaError: the report could not be written.
    """
    run, config = Path(run), read_config(run)
    metrics, ledger = read_lines(run / METRICS_NAME), read_lines(run / LEDGER_NAME)
    metrics = [_figures(line) for line in metrics if is_number(line.get("step"))]
    steps = [line for line in metrics if "loss" in line and "step_s" in line]
    scores = [line for line in metrics if any(key in line for key in _SCORES)]
    asked, resolved, name = config["config"], config.get("resolved", {}), escape(run.resolve().name)
    data = resolved.get("data", "?")
    about = f"{_model_and_method(asked, resolved)}, trained on {' and '.join(data) if isinstance(data, list) else data}"
    body = [
        f"<h1>{name}</h1><p class='soft'>{escape(about)}</p>",
        _tiles(steps, scores, ledger, resolved),
        _curves(steps, scores, is_finetuned(config)),
        by_source(steps, resolved),
        _reconstructions(_previews(run / PREVIEWS_NAME)),
        _score_table(scores),
        _ledger_table(ledger),
        "<h2>Configuration</h2><div class='columns'>",
        _pairs("asked for", asked),
        _pairs("resolved", resolved),
        _pairs("versions", config.get("versions", {})),
        "</div>",
        f"<p class='soft'>Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by <code>coma report</code>.</p>",
    ]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        # No script, and nothing from anywhere, whatever a name of a file or a class may hold.
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{name} · coma</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    path = run / REPORT_NAME
    try:
        write_atomically(path, visible_lines(page))
    except OSError as error:
        raise ComaError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None
    return path


def _figures(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is a number in a line of metrics, and the data that it was taken on."""
    return {key: value for key, value in line.items() if is_number(value) or key in ("data", "evaluated_on")}


def _model_and_method(asked: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """Return the model and the method by which it was trained."""
    if network := resolved.get("network"):
        return f"{network['model']}, fine-tuned on {network['classes']} classes from {asked['source']}"
    sizes = " + ".join(map(str, resolved.get("view_sizes", [])))
    views = f", views of {sizes} of {resolved['units']} mask units" if sizes else ""
    return f"{asked.get('model', '?')}, {asked.get('method', '?')}{views}"


def _previews(folder: Path) -> list[Path]:
    """Return at most `_MOST_PICTURES` pictures in the order of steps, the first and the last among them."""
    previews = sorted(path for path in folder.glob("step-*.png") if path.stem.removeprefix("step-").isdecimal())
    if len(previews) <= _MOST_PICTURES:
        return previews
    return [previews[round(i * (len(previews) - 1) / (_MOST_PICTURES - 1))] for i in range(_MOST_PICTURES)]


def _tiles(steps: Lines, scores: Lines, ledger: Lines, resolved: Mapping[str, Any]) -> str:
    tiles: list[tuple[str, str]] = []
    if steps:
        last = steps[-1]
        tail = [line["loss"] for line in steps[-span_of(len(steps)) :]]
        spent_s = sum(line["step_s"] for line in steps)
        waited_s = sum(line.get("data_wait_s") or 0.0 for line in steps)
        of = f" of {resolved['steps']:,}" if resolved.get("steps", last["step"]) != last["step"] else ""
        images = last.get("samples", 0)
        speed = median_high(line.get("images_per_s") or 0.0 for line in steps)
        tiles += [
            (f"{sum(tail) / len(tail):.4f}", f"loss, mean of the last {len(tail)} steps"),
            (f"{last['step']:,}{of}", f"steps, {last.get('epoch', 0):.3g} epochs"),
            (f"{images:,}", "images seen"),
            (f"{speed:,.0f}", "images/s, median"),
            (f"{waited_s / spent_s:.0%}" if spent_s else "–", "of the time waiting for data"),
        ]
    for key in ("accuracy", "probe", "knn", "miou", "miou_dinov2", "miou_knn"):
        lines = [line for line in scores if key in line and "data" not in line]
        if lines:
            lines.sort(key=lambda line: line["step"])
            before = f", {lines[0][key]:.1f}% at step {lines[0]['step']:,}" if len(lines) > 1 else ""
            tiles.append((f"{lines[-1][key]:.1f}%", f"{_SCORES[key]}{before}"))
    tiles.append((f"{len(ledger):,}", "damaged samples replaced"))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in tiles)
    return f"<div class='tiles'>{cells}</div>"


def _curves(steps: Lines, scores: Lines, finetuned: bool) -> str:
    if not steps:
        return "<h2>Training</h2><p class='none'>No step has been logged yet.</p>"
    at = [line["step"] for line in steps]
    span = span_of(len(steps))

    def column(key: str, scale: float = 1.0) -> list[float]:
        return [float("nan") if line.get(key) is None else line[key] * scale for line in steps]

    loss = column("loss")
    smoothed = Curve(at[span // 2 : len(at) - (span - 1) // 2], smooth(loss, span)[span - 1 :])
    curves = [Curve(at, loss, faint=True), smoothed] if span > 1 else [Curve(at, loss)]
    y_name = "cross-entropy" if finetuned else "mean squared error of normalised pixels"
    y_name += f"; line: mean over {span} steps" if span > 1 else ""
    wide = chart(curves, title="Loss", y_name=y_name, x_name="step")
    panels = (
        ("images_per_s", 1.0, "Speed", "images/s", True),
        ("data_wait_s", 1000.0, "Waiting for data", "ms per step", True),
        ("lr", 1.0, "Learning rate", "", True),
        ("grad_norm", 1.0, "Gradient", "norm before clipping", False),
    )
    rest = [
        chart([Curve(at, column(key, scale))], title=title, y_name=y_name, x_name="step", from_zero=from_zero)
        for key, scale, title, y_name, from_zero in panels
    ]
    evaluated = (
        *(("accuracy", "% top-1"), ("knn", "% top-1")),
        *(("miou_knn", "% of 10 neighbours"), ("rankme", "effective rank")),
    )
    for key, y_name in evaluated:
        points = sorted((line["step"], line[key]) for line in scores if key in line and "data" not in line)
        if len(points) > 1:
            curve = Curve([step for step, _ in points], [value for _, value in points])
            rest.append(chart([curve], title=_SCORES[key], y_name=y_name, x_name="step"))
    return f"<h2>Training</h2><div class='wide'>{wide}</div><div class='charts'>{''.join(rest)}</div>"


def _reconstructions(pictures: Sequence[Path]) -> str:
    if not pictures:
        return ""
    blocks = [
        "<h2>Reconstructions</h2><p class='soft'>Each row shows an image, what each view sees of it, and what is"
        " predicted from that view. Brightness and contrast of predicted patches are those of the image.</p>"
    ]
    for path in reversed(pictures):
        step = int(path.stem.removeprefix("step-"))
        picture = _embedded(path, f"reconstructions after step {step}")
        if path == pictures[-1]:
            blocks.append(f"<p>after step {step:,}</p>{picture}")
        else:
            blocks.append(f"<details><summary>after step {step:,}</summary>{picture}</details>")
    return "".join(blocks)


def _embedded(path: Path, what: str) -> str:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError:  # Pillow's, of half a picture, too
        return f"<p class='soft'>{escape(str(path))} cannot be read</p>"
    picture.thumbnail((_PICTURE_WIDTH_PX, 10 * _PICTURE_WIDTH_PX))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=88)
    source = base64.b64encode(data.getvalue()).decode("ascii")
    return (
        f"<img alt='{escape(what, quote=True)}' width='{picture.width}' height='{picture.height}' "
        f"src='data:image/jpeg;base64,{source}'>"
    )


def _score_table(scores: Lines) -> str:
    if not scores:
        add = "<code>coma probe</code> and <code>coma knn</code> add them, of labelled data"
        return f"<h2>Scores</h2><p class='none'>None yet: {add}.</p>"
    with_data = any("data" in line or "evaluated_on" in line for line in scores)
    columns = [key for key in _SCORES if any(key in line for line in scores)]
    names = ["step", *(_SCORES[key] + ("" if key == "rankme" else ", %") for key in columns)]
    head = "".join(f"<th class='n'>{name}</th>" for name in names)
    rows = []
    for line in sorted(scores, key=lambda line: line["step"]):
        cells = "".join(
            f"<td class='n'>{line[key]:.1f}</td>" if key in line else "<td class='n'></td>" for key in columns
        )
        where = f"<td>{escape(str(line.get('data', line.get('evaluated_on', 'its own'))))}</td>" if with_data else ""
        rows.append(f"<tr><td class='n'>{line['step']:,}</td>{cells}{where}</tr>")
    head += "<th>data</th>" if with_data else ""
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    of = "On frozen features: averaged, and of patches for mIoU" if any("miou" in key for key in columns) else ""
    of = of or "On frozen, averaged features"
    frozen = "" if "accuracy" in columns else f"<p class='soft'>{of}.</p>"
    return f"<h2>Scores</h2>{frozen}<div class='scroll'>{table}</div>"


def _ledger_table(ledger: Lines) -> str:
    if not ledger:
        return ""
    reasons = Counter(str(line.get("reason", "?")) for line in ledger)
    rows = "".join(
        f"<tr><td class='n'>{count:,}</td><td>{escape(reason)}</td></tr>" for reason, count in reasons.most_common(12)
    )
    return (
        "<h2>Damaged samples</h2>"
        "<p class='soft'>Each was replaced by another; <code>ledger.jsonl</code> names them.</p>"
        f"<div class='scroll'><table><tr><th class='n'>times</th><th>reason</th></tr>{rows}</table></div>"
    )


def _pairs(title: str, pairs: Mapping[str, Any]) -> str:
    if not pairs:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{_value(value)}</td></tr>"
        for key, value in pairs.items()
        if value is not None
    )
    return f"<div><table class='pairs'><tr><th colspan='2'>{escape(title)}</th></tr>{rows}</table></div>"


def _value(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"<code>{escape(json.dumps(value))}</code>"
    if isinstance(value, float):
        return escape(f"{value:.6g}")
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
