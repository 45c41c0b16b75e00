"""Which device a session of tests is about.

pytest                                  the CPU: GPUs are hidden, so that it tests the same on every machine
pytest -m gpu -n0                       a GPU: tests marked `gpu`, and those marked `gpu_too`, which are both's
COMA_REHEARSE_GPU=1 pytest -m gpu -n0   the same tests on the CPU, but for what only CUDA has
"""

import os
import re

import pytest

DEVICE = "cpu"
"""Where a test marked `gpu_too` computes. Read it when a test module is imported, or later."""
REHEARSED = bool(os.environ.get("COMA_REHEARSE_GPU"))
"""Whether the CPU stands in for the GPU."""

only_on_cuda = pytest.mark.skipif(REHEARSED, reason="a CPU cannot stand in for the GPU here")


def choose(markers: str) -> None:
    """Choose the device of a session by its option -m.

    Raises:
        pytest.UsageError: the GPU's tests are asked for, and there is none: nothing would be tested.
    """
    global DEVICE
    if not of_the_gpu(markers) or REHEARSED:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError(
            f"-m {markers!r}: torch {torch.__version__} finds no GPU here that it can use; "
            "COMA_REHEARSE_GPU=1 runs these tests on the CPU"
        )
    DEVICE = "cuda"
    # torch looks at it once in a process, and some tests compute before training does.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def of_the_gpu(markers: str) -> bool:
    """Whether an expression of -m asks for the tests marked `gpu`."""
    return re.search(r"\bgpu\b", re.sub(r"\bnot\s+gpu\b", "", markers)) is not None
