import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from coma.errors import DataError
from coma.runs.charts import Curve, chart, figure, smooth, ticks
from coma.runs.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "img", "path"}


class _Checker(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def _run(folder: Path, steps: int = 40, *, pictures: int = 3) -> Path:
    run = folder / "run-<b>"
    (run / "previews").mkdir(parents=True)
    config = {
        "config": {"model": "dyvit_tiny", "method": "coma", "seed": 0},
        "resolved": {
            "steps": 40,
            "data": "shards</td><script>alert(1)</script>\x1b[2J\u202e\udce9",
            "deepspeed": {"zero": {"stage": 2}},
        },
        "versions": {"torch": "2.6", "command": 'coma "pretrain" & more'},
    }
    (run / "config.json").write_text(json.dumps(config))
    lines = [
        {
            "step": step,
            "epoch": step / 10,
            "samples": 32 * step,
            "loss": 1 / step,
            "lr": 1e-4,
            "grad_norm": None if step == 3 else 1.0,
            "step_s": 0.2,
            "data_wait_s": 0.05,
            "images_per_s": 160.0,
        }
        for step in range(1, steps + 1)
    ]
    scores = [
        {"step": 0, "probe": 31.25, "knn": 20.0},
        {"step": 40, "probe": 52.5, "knn": 33.0, "rankme": 12.34},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines + scores))
    (run / "ledger.jsonl").write_text(json.dumps({"step": 3, "key": "k", "reason": "<i>truncated</i>"}) + "\n")
    for i in range(pictures):
        Image.new("RGB", (300, 120), (10 * i, 50, 50)).save(run / "previews" / f"step-{10 * i:06d}.png")
    return run


def _read(run: Path) -> _Checker:
    checker = _Checker()
    checker.feed((run / "report.html").read_text())
    checker.close()
    assert checker.open == []
    return checker


def test_one_file_that_needs_nothing_else_and_escapes_every_text(tmp_path):
    run = _run(tmp_path)
    assert write_report(run) == run / "report.html"
    page = _read(run)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any(tag in ("link", "iframe", "i") and "class" not in attrs for tag, attrs in page.tags)
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert len(links) == 3
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "http:" not in (run / "report.html").read_text()
    assert "https:" not in (run / "report.html").read_text()
    policy = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for text in ("<script>alert(1)</script>", "<i>truncated</i>", 'coma "pretrain" & more', "run-<b>"):
        assert text in page.text


def test_it_tells_loss_speed_scores_ledger_configuration_and_versions(tmp_path):
    run = _run(tmp_path)
    write_report(run)
    text = _read(run).text
    for expected in ("52.5%", "31.2% at step 0", "25%", "160", "1,280", "after step 20", "12.3", "2.6"):
        assert expected in text, expected
    assert '{"zero": {"stage": 2}}' in text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_has_nothing_to_complain_of_and_runs_nothing(tmp_path):
    run = _run(tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["data"] = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    (run / "config.json").write_text(json.dumps(config))
    write_report(run)
    for width in (1280, 400):
        done = subprocess.run(
            [
                *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
                *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
                *(f"--window-size={width},2000", "--virtual-time-budget=2000", "--dump-dom"),
                (run / "report.html").resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "<title>run-&lt;b&gt; · coma</title>" in done.stdout
        assert done.stdout.count("<img") == 3
        assert "CONSOLE" not in done.stderr


def test_a_run_that_has_just_begun_has_a_report_too(tmp_path):
    run = _run(tmp_path, pictures=0)
    for name in ("metrics.jsonl", "ledger.jsonl"):
        (run / name).unlink()
    write_report(run)
    assert "No step has been logged yet" in _read(run).text


def test_many_pictures_are_thinned_and_the_last_is_on_top(tmp_path):
    run = _run(tmp_path, pictures=20)
    write_report(run)
    shown = [int(step) for step in re.findall(r"after step (\d+)<", (run / "report.html").read_text())]
    assert len(shown) == 6
    assert shown[0] == 190
    assert shown[-1] == 0


def test_no_run_folder(tmp_path):
    with pytest.raises(DataError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.713, 0.956) == pytest.approx([0.75, 0.8, 0.85, 0.9, 0.95])
    assert ticks(1, 300) == [100, 200, 300]
    assert ticks(5, 5) == [5]
    assert [figure(value, 200) for value in (0, 1000, 12000)] == ["0", "1,000", "12,000"]
    assert figure(0.25, 0.05) == "0.25"
    assert [figure(value, 2e-4) for value in (0, 6e-4, 1.2e-3)] == ["0", "6e-4", "1.2e-3"]
    assert figure(2.3025, 5e-4) == "2.3025"


def test_smoothing_is_a_running_mean():
    assert smooth([1, 2, 3, 4], 2) == pytest.approx([1, 1.5, 2.5, 3.5])
    assert smooth([1, 2, 3], 1) == [1, 2, 3]


def test_a_chart_follows_the_values_and_a_spike_does_not_flatten_it():
    y = [500.0] + [1.0 - 0.001 * i for i in range(900)]
    drawn = chart([Curve(list(range(901)), y)], title="Loss", y_name="mse", x_name="step")
    path = re.search(r"class='line' d='M(.*?)'", drawn).group(1)
    points = [tuple(map(float, pair.split())) for pair in path.split("L")]
    assert len(points) <= 800
    assert all(a[0] < b[0] for a, b in itertools.pairwise(points))
    late = [down for _, down in points[5:]]
    assert late == sorted(late)  # down the page as the loss falls
    assert late[-1] - late[0] > 200  # of 300: the spike is cut off, not the curve flattened


def test_nothing_and_a_single_value_can_be_drawn():
    assert "nothing logged" in chart([Curve([1, 2], [float("nan")] * 2)], title="t", y_name="", x_name="x")
    assert "dot" in chart([Curve([1], [0.5])], title="t", y_name="", x_name="x")


def test_half_a_picture_and_scores_out_of_order_do_no_harm(tmp_path):
    run = _run(tmp_path)
    picture = run / "previews" / "step-000020.png"
    picture.write_bytes(picture.read_bytes()[:60])
    with (run / "metrics.jsonl").open("a") as file:  # an older checkpoint, probed last
        file.write(json.dumps({"step": 20, "probe": 40.0}) + "\n")
    write_report(run)
    text = _read(run).text
    assert "step-000020.png cannot be read" in text
    assert "52.5%" in text
