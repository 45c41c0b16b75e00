"""Exports pushed to the Hugging Face Hub and loaded from it, in a process of their own."""

import sys
from pathlib import Path
from subprocess import run


def test_pushes() -> None:
    """In a fresh process: after half the suite in one, the Hub's client once lost its sockets under its hands."""
    pushes = Path(__file__).with_name("pushes.py")
    done = run([sys.executable, "-m", "pytest", "-q", "--numprocesses=0", pushes], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
