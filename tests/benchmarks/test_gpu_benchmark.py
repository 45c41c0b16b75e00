"""Each part of the benchmark of a GPU is rehearsed on the CPU, in its own process, as it will run there."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from commands import alive
from typer.testing import CliRunner

from benchmarks.gpu import coma_command, curve, process, resuming
from benchmarks.gpu import commands as commands_parts
from benchmarks.gpu.coma_command import CommandFailed
from benchmarks.gpu.epochs import measure_hours
from benchmarks.gpu.images import drawn
from benchmarks.gpu.part import Measuring
from benchmarks.gpu.parts import PARTS, chosen
from benchmarks.gpu.process import ROOT, descendants, environment
from benchmarks.gpu.record import Setting, read_record, setting_from
from benchmarks.gpu.report import markdown_table, write_report
from coma.cli.main import app
from coma.errors import UsageError

pytestmark = pytest.mark.timeout(900)  # of a busy machine; all parts together take two minutes of two cores

FIGURES = {
    "tests": {"outcome"},
    "decode": {"psnr_db", "greatest_difference", "images_per_s"},
    "stream": {"images_per_s", "stream_is_times_as_fast"},
    "step": {"images_per_s", "step_ms", "tflops", "compiled"},
    "epoch": {"epoch_ratio", "images_per_s", "wait_share"},
    "zero": {"losses_equal", "weights_equal", "killed_after", "resumed_from"},
    "curve": {"mean_difference", "greatest_difference"},
    "plan": {"time_ratio", "memory_ratio"},
    "memory": {"flag", "memory_ratio", "time_ratio"},
    "crops": {"image_size", "step_ms", "first_step_s"},
    "hours": {"hours_96_epochs", "hours_100_epochs"},
}
"""Some columns that each part's table must have."""


def run(*arguments: object, limit_s: float = 800) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    given = environment(Setting("", "", "cpu", True, 0))
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit_s, env=given, check=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the parts leave their records, each for those after it."""
    return tmp_path_factory.mktemp("gpu") / "out"


@pytest.mark.parametrize(
    "name",
    [pytest.param(part.name, marks=pytest.mark.slow) for part in PARTS],
)
def test_each_part_can_be_rehearsed(name: str, out: Path) -> None:
    done = run(name, "--device", "cpu", "--quick", "--out", out, "--budget-s", "700")
    log = (out / f"{name}.log").read_text() if (out / f"{name}.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    record = read_record(out, name)
    assert record is not None
    assert record["state"] == "complete", record
    assert record["rows"]
    assert not [row for row in record["rows"] if "failed" in row]
    assert set().union(*record["rows"]) >= FIGURES[name]
    figures = [value for row in record["rows"] for value in row.values() if isinstance(value, float)]
    assert all(map(math.isfinite, figures))
    assert {"torch", "cuda", "dali", "python"} <= record["machine"].keys()
    assert f"benchmarks.gpu {name} --device cpu --quick" in record["command"]
    page = (out / "report.md").read_text()
    assert f"## {name}: " in page
    assert "A rehearsal" in page
    assert (out / f"{name}.png").exists() == (record["bars"] is not None)
    if name == "zero":
        assert all(row["losses_equal"] and row["weights_equal"] for row in record["rows"])
        assert all(row["resumed_from"] <= row["killed_after"] < row["steps"] for row in record["rows"])
    if name == "tests":
        assert {row["outcome"] for row in record["rows"]} == {"passed"}


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_the_report_comes_of_the_records(out: Path) -> None:
    if read_record(out, "decode") is None:
        pytest.skip("needs the records of the rehearsal")
    before = (out / "decode.json").read_bytes()
    done = run("decode", "--device", "cpu", "--quick", "--out", out)
    assert (done.returncode, (out / "decode.json").read_bytes()) == (0, before)
    assert "done before" in done.stdout
    (out / "report.md").unlink()
    assert run("--report", "--out", out).returncode == 0
    assert "## decode: " in (out / "report.md").read_text()
    mixed = run("decode", "--device", "cpu", "--quick", "--data", out, "--out", out)
    assert mixed.returncode == 2
    assert "was measured with data" in mixed.stderr


def test_a_part_that_overruns_is_ended_with_all_it_started_and_the_others_go_on(tmp_path: Path) -> None:
    data = drawn(tmp_path, 8, 0.1)
    done = run("zero", "hours", "--device", "cpu", "--quick", "--data", data, "--out", tmp_path, "--budget-s", 6)
    assert done.returncode == 1, done.stdout + done.stderr
    record = read_record(tmp_path, "zero")
    assert record is not None
    assert record["state"] == "failed"
    assert "killed, as it was not done after 6 s" in record["reason"]
    commands = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if is_of(path, tmp_path)]
    assert not [path for path in commands if alive(int(path.name))]
    assert "hours" in (tmp_path / "report.md").read_text()


def is_of(path: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in path.read_bytes()
    except OSError:
        return False


@pytest.mark.slow
def test_a_part_that_crashes_says_why(tmp_path: Path) -> None:
    done = run("epoch", "--device", "cpu", "--quick", "--data", tmp_path / "none", "--out", tmp_path / "out")
    assert done.returncode == 1
    record = read_record(tmp_path / "out", "epoch")
    assert record is not None
    assert record["state"] == "failed"
    assert "exit code 1: coma.errors.DataError" in record["reason"]
    assert "**failed**: exit code 1" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_part_that_hangs_after_its_last_row_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries may take their time while they are taken down: then the record is written already."""
    waited = process._wait
    monkeypatch.setattr(process, "_wait", lambda *given: waited(*given) or "killed")
    (tmp_path / "step.json").write_text(json.dumps({"rows": [{"network": "a", "batch": 1, "images_per_s": 5.0}]}))
    record = process.run_part(chosen(["hours"])[0], setting(tmp_path, 600.0))
    assert (record["state"], len(record["rows"])) == ("complete", 1)
    assert record["notes"][-1] == "after all was measured: killed"
    assert read_record(tmp_path, "hours") == record


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["decod", "--out", "o"], "no part named 'decod': did you mean 'decode'?"),
        (["decode"], "--out is missing"),
        (["--report", "--out", "none"], "holds no results"),
        (["decode", "--out", __file__, "--device", "cpu"], "name a folder that can be written"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run(*(tmp_path / word if word in ("o", "none") else word for word in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_gpu_one_is_asked_for_at_once(tmp_path: Path) -> None:
    done = run("decode", "--out", tmp_path)  # with the GPU hidden, where there is one
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch finds no GPU here")


def test_the_parts_are_listed_with_their_minutes() -> None:
    lines = run("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [part.name for part in PARTS]
    assert all(part.minutes <= 4 for part in PARTS)
    with pytest.raises(UsageError, match="choose tests, decode"):
        chosen(["nothing-like-it"])


def setting(tmp_path: Path, budget_s: float = 100.0) -> Setting:
    return Setting("data", str(tmp_path), "cpu", True, budget_s)


def test_a_part_that_was_cut_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    first = Measuring("step", setting(tmp_path, 0.0), tmp_path, {})
    first.add(network="a", images_per_s=1.0)
    first.add(network="b", failed="it broke")
    first.add(network="c", fits=False, failed="out of memory")
    assert not first.time_for("d")
    first.end()
    record = read_record(tmp_path, "step")
    assert record is not None
    assert (record["state"], record["reason"]) == ("partial", "budget of time used up, missing: d")
    second = Measuring("step", setting(tmp_path), tmp_path, {})
    assert [second.has(network=name) for name in "abcd"] == [True, False, True, False]
    assert second.time_for("b")
    second.put({"network": "b"}, images_per_s=2.0)
    second.end()
    record = read_record(tmp_path, "step")
    assert record is not None
    assert (record["state"], len(record["rows"])) == ("complete", 3)


def test_rounds_end_with_the_budget(tmp_path: Path) -> None:
    spent = Measuring("decode", setting(tmp_path, 0.0), tmp_path, {})
    assert list(spent.rounds(5, least=2)) == [0, 1]
    assert list(Measuring("decode", setting(tmp_path), tmp_path, {}).rounds(5)) == [0, 1, 2, 3, 4]
    record = read_record(tmp_path, "decode")
    assert record is not None
    assert record["notes"] == []  # of the second


def test_hours_are_those_of_the_slower_of_stream_and_step(tmp_path: Path) -> None:
    rows = {
        "stream": [{"loader": "coma's stream", "images_per_s": 1000.0}, {"loader": "other", "images_per_s": 1.0}],
        "step": [
            {"network": "slow", "batch": 64, "compiled": False, "images_per_s": 500.0},
            {"network": "fast", "batch": 64, "compiled": True, "images_per_s": 2000.0},
            {"network": "large", "batch": 64, "compiled": True, "fits": False},
        ],
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": content}))
    measuring = Measuring("hours", setting(tmp_path), tmp_path, {})
    measure_hours(measuring)
    slow, fast = measuring.rows
    assert (slow["limited_by"], fast["limited_by"]) == ("the step", "the stream")
    assert slow["hours_100_epochs"] == pytest.approx(100 * 1_281_167 / 500 / 3600)
    assert fast["hours_96_epochs"] == pytest.approx(96 * 1_281_167 / 1000 / 3600)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero", "curve", "plan", "memory", "crops"])
def test_coma_accepts_the_full_size_commands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal shrinks them: here each is resolved, and its network built, in full size, but not trained."""
    data = drawn(tmp_path / "drawn", 8, 0.1)
    planned: set[str] = set()

    def start(measuring: Measuring, words: list[str], log: Path, **variables: str) -> None:
        log.touch()
        words = ["plan", *words[1:], "--no-measure", "--decode", "auto"]  # a GPU is not there
        words[words.index("--out") + 1] = str(tmp_path / "run")
        if " ".join(words) not in planned:
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{words}: {done.output} {done.exception}"
            planned.add(" ".join(words))

    def wait(*_: object) -> None:
        raise CommandFailed("planned")

    for module in (coma_command, resuming, curve):
        monkeypatch.setattr(module, "start", start)
        monkeypatch.setattr(module, "wait", wait)
    monkeypatch.setattr(commands_parts, "plan", lambda *_: {})
    monkeypatch.setattr(Measuring, "on_gpu", True)
    full = dataclasses.replace(setting(tmp_path, 1000.0), quick=False, data=str(data))
    measuring = Measuring(name, full, tmp_path, {})
    chosen([name])[0].measure()(measuring)
    assert len(planned) == {"zero": 8, "curve": 3, "plan": 3, "crops": 2}.get(name, len(measuring.rows))
    assert all(str(row["failed"]).endswith("planned") for row in measuring.rows)
    assert name != "memory" or measuring.rows


def test_tables_have_a_column_for_each_name(tmp_path: Path) -> None:
    assert markdown_table([{"a_b": 1.23456, "c": True}, {"a_b": 12345.6, "d": "x|y"}]) == [
        "| a b | c | d |",
        "|---|---|---|",
        "| 1.235 | yes |  |",
        "| 12,346 |  | x\\|y |",
    ]
    assert setting_from(setting(tmp_path).to_text()) == setting(tmp_path)
    (tmp_path / "step.json").write_text(json.dumps({"state": "complete", "rows": [], "bars": {"title": 3}}))
    assert "no plot: " in write_report(tmp_path).read_text()  # and no traceback


def test_descendants_are_found() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        while not (found := descendants(process.pid)):
            assert process.poll() is None
        assert all(map(alive, found))
        assert process.stdin is not None
        process.stdin.close()
