"""Checks fail alone, say what to do, and leave nothing behind."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

import coma.installed.cuda
import coma.installed.installation
import coma.installed.versions
from coma.doctor import machine, software
from coma.doctor.examine import checks, examine
from coma.doctor.finding import Finding
from coma.installed.cuda import without_dali
from coma.installed.installation import Installation
from coma.training.memory import available


def well() -> Finding:
    print("chatter")
    os.write(1, b"more of it")
    return Finding("ok", "fine")


def fails() -> Finding:
    raise ImportError("no such library:\nsee there")


def crashes() -> Finding:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Finding("ok", "never")


def hangs() -> Finding:
    time.sleep(600)
    return Finding("ok", "never")


def test_a_check_that_fails_crashes_or_hangs_is_one_finding_of_many(capfd) -> None:
    names = {"fails": fails, "crashes": crashes, "well": well}
    found = dict(examine(names))
    assert list(found) == list(names)
    assert found["well"] == Finding("ok", "fine")
    assert found["fails"].text == "ImportError: no such library: see there"
    assert f"exit code {-signal.SIGSEGV}" in found["crashes"].text
    ((_, hung),) = examine({"hangs": hangs}, limit_s=0.5)
    assert hung.text == "no answer within 0.5 s"
    for finding in (found["fails"], found["crashes"], hung):
        assert finding.status == "problem"
        assert finding.advice
    assert capfd.readouterr().out == ""


def test_this_machine_passes_and_nothing_is_left_on_its_disk(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    of_software = (software.installed_files, software.versions, software.decoding)
    for check in (*of_software, machine.memory, machine.disk, machine.cores):
        finding = check()
        assert finding.status in ("ok", "warning")  # as much as is free, and who else computes, is not ours
        assert (finding.status == "ok") == (finding.advice == "")
    assert software.decoding() == Finding("ok", "a JPEG, on the cpu") or Path("/dev/nvidia0").exists()
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_said_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    found = machine.cores()
    assert (found.status, "4096 threads on" in found.text) == ("warning", True)
    assert f"OMP_NUM_THREADS={len(os.sched_getaffinity(0))}" in found.advice or "OMP_NUM_THREADS=" in found.advice

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (900, hard))
    try:
        found = machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.status, found.text) == ("warning", "900 at most")
    assert found.advice.startswith("ulimit -n ")

    monkeypatch.chdir("/proc")  # where no file can be
    assert machine.disk().status == "problem"

    monkeypatch.setattr(
        coma.installed.versions,
        "coma_requirements",
        lambda: ["torch>=99", "absent-library>=1,<2", "ray; extra == 'ray'"],
    )
    monkeypatch.setattr(coma.installed.installation, "installation", Installation)
    found = software.versions()
    assert found.status == "problem"
    assert found.advice == "pip install 'torch>=99' 'absent-library<2,>=1'"


def test_decoding_is_not_checked_without_dali(monkeypatch) -> None:
    monkeypatch.setattr(coma.installed.cuda, "_of_dali", lambda packages: None)
    found = software.decoding()
    assert (found.status, found.text) == ("problem", "not checked")
    assert found.advice == without_dali()


def test_a_store_is_reached_only_where_it_is_named(tmp_path) -> None:
    assert "network" not in checks()
    assert "network" in checks("s3://bucket/photos")
    empty = software.network(str(tmp_path))
    assert empty.status == "warning"
    assert "coma shard" in empty.advice
    (tmp_path / "_info.json").write_text("{}")
    assert software.network(str(tmp_path)).status == "ok"
    assert software.network("nosuch://place/x").status == "problem"


@pytest.mark.slow
def test_the_command_ends_with_1_if_there_is_a_problem(tmp_path, monkeypatch, capsys) -> None:
    from coma.cli.main import main

    monkeypatch.chdir(tmp_path)

    def coma(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["coma", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), capsys.readouterr().out

    code, out = coma("doctor", "--json")
    found = json.loads(out)
    assert [each["name"] for each in found["checks"]] == list(checks())
    assert code == bool(found["problem"])
    assert not list(tmp_path.iterdir())
    code, out = coma("doctor", "--url", "nosuch://place/x")
    assert code == 1
    assert max(map(len, out.splitlines())) <= 80
    assert "problem  network" in out


def test_files_in_memory_are_not_memory_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(available, "_CGROUP", tmp_path)
    for name, text in {
        "memory.max": "1717986918\n",
        "memory.current": "1700000000\n",
        "memory.stat": "anon 100000000\ninactive_file 1500000000\nactive_file 5\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert machine.memory().text == "1.5 of 1.7 GB free"
