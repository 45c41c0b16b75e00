"""A process group for tests of networks that are spread over processes."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def one_process() -> Iterator[Any]:
    """A mesh of this process alone."""
    import torch.distributed as dist

    ours = not dist.is_initialized()  # tests of training leave theirs, of one process as well
    if ours:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    if ours:
        dist.destroy_process_group()
