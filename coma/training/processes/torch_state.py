"""Global state of torch, numpy and random, which belongs to the program that calls coma."""

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from coma.measure import give_back_freed_memory


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Compute with torch's defaults in a block, whatever the caller has set, and put back what was set.

    These are random states, default dtype and device, current GPU, and whether gradients are kept. Memory that the
    block has freed goes back to the system and to the GPU.
    """
    random_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    had_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpu = (torch.cuda.current_device(), torch.cuda.get_rng_state_all()) if had_gpu else None
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    if device.type != "cpu":
        torch.set_default_device(None)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        gc.collect()
        give_back_freed_memory()
        torch.cuda.empty_cache()
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)
        random.setstate(random_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if gpu is not None:
            torch.cuda.set_device(gpu[0])
            torch.cuda.set_rng_state_all(gpu[1])
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(torch.initial_seed())  # as it would be had the block not been
