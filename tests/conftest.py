"""What holds for all tests: how long a case takes is no property of the code, least of all on a busy machine."""

import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator

import devices
import pytest
from hypothesis import HealthCheck, settings

# A worker of pytest-xdist has a core: of two threads on one, one spins while it waits for the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Begun in the background of a shell, tests have Ctrl-C ignored, and so has all that they start.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("coma", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("coma")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device, before anything has looked for GPUs."""
    config.addinivalue_line("markers", "gpu_too: runs on the CPU by default, and on a GPU with -m gpu")
    devices.choose(config.option.markexpr)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With -m gpu, tests of both devices are the GPU's."""
    if devices.of_the_gpu(config.option.markexpr):
        for item in items:
            if item.get_closest_marker("gpu_too"):
                item.add_marker("gpu")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what is imported by now, torch for one, out of every later collection of garbage: half of a small run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device() -> str:
    """Where tests marked `gpu` and `gpu_too` compute: "cpu" or "cuda"."""
    return devices.DEVICE


@pytest.fixture(autouse=True)
def _quiet_logger() -> None:
    """A command that ran before in this process has sent the log to its own stderr, which is closed by now."""
    logger = logging.getLogger("coma")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(autouse=True)
def _safe_path_ends_with_the_test() -> Iterator[None]:
    """A command that runs in this process keeps those that it starts from importing from the current folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    yield
    if before is None:
        os.environ.pop("PYTHONSAFEPATH", None)
