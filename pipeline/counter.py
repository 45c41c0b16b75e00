"""Counter-based random numbers: a hash of keys that gives the same bits in numpy and in torch.

The next number of an ordinary generator depends on all that it gave before, so resuming means replaying. Here every
random number is a function of its keys, `hash(seed, epoch, sample, ...)`, and can be computed in any order, on any
rank, on any device.

The function is SplitMix64 (`coma.shards.splitmix64`). Folding in a key k takes output number k of the SplitMix64
generator whose state is the hash so far: h' = mix(h + (k + 1) * GOLDEN).

numpy computes in uint64. torch has no arithmetic for uint64 on every device, so it computes in int64, whose
sums and products wrap to the same bits; only the shift has to be made logical, by masking.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coma.shards.splitmix64 import GOLDEN, MIX_1, MIX_2, SHIFTS, mix

_U64 = (1 << 64) - 1

UInt64Array = npt.NDArray[np.uint64]
Key = int | npt.NDArray[np.integer]


class Purpose(IntEnum):
    """The first key of every hash, so that two uses of the same sample's randomness never share a number."""

    SHARDS = 1
    SAMPLES = 2
    CROP = 3
    UNITS = 4
    SUBSTITUTE = 5
    PATCHES = 6
    SOURCE = 7


def hash_numpy(*keys: Key) -> UInt64Array:
    """Hash integer keys to 64 uniform bits.

    Args:
        keys: integers or integer arrays, taken modulo 2^64 and broadcast against each other.

    Returns:
        uint64 array of the broadcast shape (0-d if every key is an int).
    """
    return hash_on(np.zeros((), np.uint64), *keys)


def hash_on(state: UInt64Array, *keys: Key) -> UInt64Array:
    """Fold more keys into a hash: `hash_on(hash_numpy(a), b)` is `hash_numpy(a, b)`."""
    with np.errstate(over="ignore"):
        for key in keys:
            # A bare array of 0 dimensions turns into a scalar under arithmetic, hence np.asarray.
            counter = np.asarray(key & _U64 if isinstance(key, int) else key).astype(np.uint64)
            state = np.asarray(mix(state + (counter + np.uint64(1)) * np.uint64(GOLDEN)))
    return state


def hash_torch(*keys: int | Tensor) -> Tensor:
    """Hash integer keys to the same 64 bits as `hash_numpy`, as int64 on the keys' device.

    Args:
        keys: ints or int64 tensors on one device, broadcast against each other; at least one is a tensor.

    Returns:
        int64 tensor of the broadcast shape: `hash_numpy(...).view(np.int64)`, bit for bit.
    """
    device = next(key.device for key in keys if isinstance(key, Tensor))
    state = torch.zeros((), dtype=torch.int64, device=device)
    for key in keys:
        # Ints are reduced in Python (exact), so that no product of two scalars can overflow on the way.
        step = _signed((key + 1) * GOLDEN) if isinstance(key, int) else (key + 1) * _signed(GOLDEN)
        state = _mix_torch(state + step)
    return state


def _mix_torch(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, SHIFTS[0])) * _signed(MIX_1)
    x = (x ^ _shift_right(x, SHIFTS[1])) * _signed(MIX_2)
    return x ^ _shift_right(x, SHIFTS[2])


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 copies the sign bit in, the mask takes it out."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value` modulo 2^64."""
    value &= _U64
    return value - (1 << 64) if value >> 63 else value


def uniform(bits: UInt64Array) -> npt.NDArray[np.float64]:
    """Turn hashes into float64 in [0, 1): the top 53 bits, so that every value is a multiple of 2^-53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: UInt64Array, stop: int) -> npt.NDArray[np.int64]:
    """Turn hashes into int64 in [0, stop): the remainder, whose bias is under stop / 2^64."""
    return (bits % np.uint64(stop)).astype(np.int64)
