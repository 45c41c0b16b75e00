"""A run in the kernel of a notebook: it prints there, shows its result, and a stop gives the kernel back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # a kernel, which imports torch: half a minute

CELL = """
import coma
small = dict(model="dyvit_nano", image_size=32, patch_size=2, batch_size=4, workers=1)
"""


class Kernel:
    """A kernel and what it sends back."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def run(self, code: str, *, interrupt_at: str | None = None) -> dict[str, Any]:
        """Run a cell; stop it when it prints a text. Return its stdout, stderr, shown result and error."""
        asked = self.client.execute(code)
        said: dict[str, Any] = {"stdout": "", "stderr": "", "shown": {}, "error": None}
        while True:
            message = self.client.get_iopub_msg(timeout=240)
            if message["parent_header"].get("msg_id") != asked:
                continue
            content, kind = message["content"], message["msg_type"]
            if kind == "stream":
                said[content["name"]] += content["text"]
                if interrupt_at is not None and interrupt_at in said["stdout"]:
                    self.manager.interrupt_kernel()
                    interrupt_at = None
            elif kind == "execute_result":
                said["shown"] = content["data"]
            elif kind == "error":
                said["error"] = content["ename"]
                said["traceback"] = "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                return said


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_a_stopped_cell_saves_and_the_kernel_goes_on(kernel: Kernel, data: Path, tmp_path: Path) -> None:
    assert kernel.run(CELL)["error"] is None
    call = f"run = coma.pretrain({str(data)!r}, out={str(tmp_path / 'run')!r}, progress=print, %s, **small)\nrun"
    stopped = kernel.run(call % "steps=300", interrupt_at="step 3/")
    assert stopped["error"] == "KeyboardInterrupt"
    assert "step 1/300" in stopped["stdout"]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert kernel.run("1 + 1")["shown"]["text/plain"] == "2"
    again = kernel.run(call % "steps=300, stop_after=1")
    assert again["error"] is None, again
    assert f"step {int(checkpoint.name[5:]) + 1}/300" in again["stdout"]
    assert "step 1/300" not in again["stdout"]
    assert "<table>" in again["shown"]["text/html"]
    shown = kernel.run(f"coma.reconstruct(run, count=2, out={str(tmp_path / 'drawn.png')!r})")
    assert {"image/png", "text/html", "text/plain"} <= shown["shown"].keys()


def test_processes_of_a_cell_stop_with_it(kernel: Kernel, data: Path, tmp_path: Path) -> None:
    kernel.run(CELL)
    call = f"coma.pretrain({str(data)!r}, out={str(tmp_path / 'run')!r}, steps=300, devices=2, progress=print, **small)"
    stopped = kernel.run(call, interrupt_at="step 2/")
    assert stopped["error"] == "KeyboardInterrupt", stopped
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    wrong = kernel.run(call.replace("devices=2", "devices=2, ds_config='zero9'"))
    assert wrong["error"] == "UsageError"
    assert "zero9" in wrong["traceback"]
    began_s = time.monotonic()
    assert kernel.run("1 + 1")["shown"]["text/plain"] == "2"
    assert time.monotonic() - began_s < 30
