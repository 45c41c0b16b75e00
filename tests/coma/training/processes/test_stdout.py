"""Whose stdout is whose: libraries have none, a caller keeps theirs during a whole run."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_runs import small

from coma.training import pretrain
from coma.training.processes.stdout import quiet_stdout

RUN = """
import logging, os, subprocess, sys
from pathlib import Path
from coma.training import PretrainConfig, pretrain

logging.basicConfig(stream=sys.stdout, format="log %(message)s")
logging.getLogger("coma").setLevel(logging.INFO)

def watch(now):
    print("printed", now.step)
    sys.stdout.flush()
    os.write(1, b"written\\n")
    subprocess.run(["echo", "of a child"], check=True)

options = dict(model="dyvit_nano", image_size=32, patch_size=2, steps=2, batch_size=4, workers=1)
pretrain(PretrainConfig(data=Path(sys.argv[1]), out=Path("run"), **options), watch)
"""


def test_libraries_write_nothing_and_the_caller_does_again_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_stdout():
        print("chatter of a library")
        os.write(1, b"chatter of a C++ library\n")
    print("a result")
    sys.stdout.flush()
    assert capfd.readouterr().out == "a result\n"


def test_other_threads_print_meanwhile(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_stdout():
        thread = threading.Thread(target=lambda: print("of another thread"))
        thread.start()
        thread.join()
        print("chatter")
        kept = sys.stdout
    print("a library's, later", file=kept)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), quiet_stdout():
        thread = threading.Thread(target=lambda: print("to a notebook"))
        thread.start()
        thread.join()
    assert capfd.readouterr().out == "of another thread\na library's, later\n"
    assert said.getvalue() == "to a notebook\n"


def test_a_callback_prints_to_the_stdout_of_its_caller(data: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        pretrain(small(data, tmp_path / "run", steps=2), lambda now: print(f"at step {now.step}"))
    assert said.getvalue() == "at step 1\nat step 2\n"


def test_all_that_a_script_sends_to_stdout_arrives(data: Path, elsewhere: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, str(data)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("log ")] == [
        line for step in (1, 2) for line in (f"printed {step}", "written", "of a child")
    ]
    assert any(line.startswith("log run ") for line in lines)
