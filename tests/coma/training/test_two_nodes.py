"""Two machines: DeepSpeed's launcher with a real pdsh and sshd between two namespaces, and two of torchrun's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import alive, all_gone, begin, command, descendants, wait_until
from small_runs import lines

from coma.runs.names import checkpoint_step
from coma.training.processes.world import free_port

START_S = 400.0
"""A busy machine takes its time."""
STEPS = 40
TOOLS = ("ip", "unshare", "nsenter", "pdsh", "ssh", "ssh-keygen", "sshd")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


@dataclass(frozen=True)
class Nodes:
    """node1, by the process that holds its namespaces, with node2 below; seen from outside."""

    pid: int
    standing: frozenset[int]

    def command(self, arguments: list[str], folder: Path) -> list[str]:
        """What runs a command on node1."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--uts", "--pid",
                f"--wd={folder}", "env", f"PATH={PATH}", *arguments]  # fmt: skip

    def running(self) -> dict[int, str]:
        """The processes that are not the machines' own."""
        pids = [pid for pid in descendants(self.pid) if pid not in self.standing and alive(pid)]
        return {pid: _told(pid) for pid in pids}

    def ranks(self) -> list[int]:
        """The processes that train, those of node1 first."""
        return [pid for pid, told in self.running().items() if "-m coma pretrain --launched" in told]

    def wait_until_idle(self) -> None:
        wait_until(lambda: not self.running(), 30.0)


def _told(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    if os.geteuid():
        pytest.skip("needs root, to make namespaces")
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]:
        pytest.skip(f"needs {', '.join(missing)} (pdsh, openssh-server, iproute2)")
    spaces = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*spaces, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs namespaces, which this machine does not allow")
    folder = tmp_path / "machines"
    folder.mkdir()
    script = Path(__file__).with_name("two_nodes.sh")
    process = begin([*spaces, "bash", str(script), str(folder), "node1"], folder / "log", PATH=PATH)
    try:
        assert wait_until((folder / "node1.pid").exists, 60.0, process), (folder / "log").read_text()
        yield Nodes(descendants(process.pid)[0], frozenset(descendants(process.pid)))
    finally:
        left = descendants(process.pid)
        process.kill()
        process.wait()
        all_gone(left)


def as_one_process(data: Path, folder: Path) -> Path:
    run, log = folder / "one", folder / "log-one"
    assert begin(command(data, run, "--steps", str(STEPS)), log).wait(START_S) == 0, log.read_text()
    return run


def assert_same_course(run: Path, expected: Path) -> None:
    seen, told = lines(run), lines(expected)
    assert [line["step"] for line in seen] == list(range(1, STEPS + 1))
    assert [line["batch_digest"] for line in seen] == [line["batch_digest"] for line in told]
    for key in ("loss", "grad_norm"):
        difference = max(abs(a[key] / b[key] - 1) for a, b in zip(seen, told, strict=True))
        print(f"{key} differs by {difference:.1e} at most")
        assert difference < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_machines_by_pdsh_stop_and_go_on_as_one_process(data: Path, tmp_path: Path, nodes: Nodes) -> None:
    hostfile, run, log = tmp_path / "hosts", tmp_path / "run", tmp_path / "log"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    here = tmp_path / "here"
    here.mkdir()
    both = nodes.command(command(data, run, "--steps", str(STEPS), "--hostfile", str(hostfile)), here)

    for stop, code in (
        (lambda process: os.kill(descendants(process.pid)[0], signal.SIGTERM), 75),
        (lambda process: (run / "stop").touch(), 75),
        (lambda process: os.kill(descendants(process.pid)[0], signal.SIGINT), 130),
    ):
        process = begin_and_train(both, log, run)
        assert len(nodes.ranks()) == 2
        stop(process)
        assert process.wait(START_S) == code, log.read_text()
        nodes.wait_until_idle()
        stopped = lines(run)[-1]["step"]
        assert stopped < STEPS
        saved = sorted(path.name for path in (run / "checkpoints").glob("*step-*"))
        assert saved[-1] == f"step-{stopped:06}"
        assert not [name for name in saved if name.startswith(".")]

    assert begin(both, log).wait(START_S) == 0, log.read_text()
    nodes.wait_until_idle()
    assert not list(here.iterdir())
    assert "Traceback" not in log.read_text()
    assert_same_course(run, as_one_process(data, tmp_path))


def begin_and_train(arguments: list[str], log: Path, run: Path) -> subprocess.Popen[bytes]:
    """Start a command and wait for its first steps."""
    before = steps(run)
    process = begin(arguments, log)
    wait_until(lambda: steps(run) > before + 2, START_S, process)
    assert process.poll() is None, log.read_text()
    return process


def steps(run: Path) -> int:
    """How many lines of steps a run has."""
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_on_two_machines_nothing_is_left_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, nodes: Nodes
) -> None:
    hostfile, run, log = tmp_path / "hosts", tmp_path / "run", tmp_path / "log"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    here = tmp_path / "here"
    here.mkdir()
    options = ["--steps", "100000", "--save-every", "1000", "--hostfile", str(hostfile)]

    missing = begin(nodes.command(command(tmp_path / "missing", run, *options), here), log)
    assert missing.wait(START_S) == 3, log.read_text()  # as both of its processes
    nodes.wait_until_idle()

    process = begin_and_train(nodes.command(command(data, run, *options), here), log, run)
    os.kill(nodes.ranks()[1], signal.SIGKILL)
    assert process.wait(START_S) == 1, log.read_text()
    nodes.wait_until_idle()
    assert "lost another process" in log.read_text()
    assert not list(here.iterdir())

    process = begin_and_train(nodes.command(command(data, run, *options), here), log, run)
    (pdsh,) = (pid for pid in descendants(process.pid) if _told(pid).startswith("pdsh "))
    os.kill(pdsh, signal.SIGKILL)
    assert process.wait(START_S) == 1, log.read_text()
    assert "ended without a result" in log.read_text()
    nodes.wait_until_idle()
    assert not list(here.iterdir())
    (saved,) = (run / "checkpoints").glob("step-*")  # by the processes, which have seen the folder go
    assert checkpoint_step(saved) == steps(run)

    process = begin_and_train(nodes.command(command(data, run, *options), here), log, run)
    os.kill(descendants(process.pid)[0], signal.SIGKILL)
    process.wait()
    assert len(nodes.ranks()) == 2  # DeepSpeed's launcher and they know nothing yet
    again = begin(nodes.command(command(data, run, *options, "--stop-after", "2"), here), log)
    assert again.wait(START_S) == 0, log.read_text()
    nodes.wait_until_idle()
    assert not list(here.iterdir())
    told = log.read_text()
    assert told.count("the command that started this run is gone") <= 1  # not if rank 1, which is silent, saw it first
    assert told.count("asked to stop: saved step") == 1
    assert "Traceback" not in told
    found = sorted(map(checkpoint_step, (run / "checkpoints").glob("step-*")))
    assert found[-2] + 2 == found[-1] == steps(run)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_machine_out_of_reach_is_named(data: Path, tmp_path: Path, nodes: Nodes) -> None:
    hostfile, log = tmp_path / "hosts", tmp_path / "log"
    hostfile.write_text("node1 slots=1\nnode3 slots=1\n")
    process = begin(nodes.command(command(data, tmp_path / "run", "--hostfile", str(hostfile)), tmp_path), log)
    assert process.wait(START_S) == 2, log.read_text()
    (line,) = log.read_text().splitlines()
    assert "cannot run commands on node3" in line
    nodes.wait_until_idle()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_of_torchruns_launchers_as_one_process(data: Path, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    train = command(data, run, "--steps", str(STEPS))[1:]
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    processes = [
        begin([sys.executable, "-m", "torch.distributed.run", *options, f"--node-rank={rank}", *train], log)
        for rank, log in enumerate(logs)
    ]
    try:
        assert [process.wait(START_S) for process in processes] == [0, 0], [log.read_text() for log in logs]
    finally:
        left = [pid for process in processes for pid in [process.pid, *descendants(process.pid)]]
        for process in processes:
            process.kill()
            process.wait()
        all_gone(left)
    assert_same_course(run, as_one_process(data, tmp_path))
