"""SplitMix64, the hash behind every random order here, in numpy.

Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the finaliser constants of
Stafford's "variant 13" as in Vigna's public-domain splitmix64.c.
"""

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, made odd: the step of the generator's state."""
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
SHIFTS = (30, 27, 31)


def mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Turn states of the generator into its outputs, uint64 of the same shape."""
    state = (state ^ (state >> np.uint64(SHIFTS[0]))) * np.uint64(MIX_1)
    state = (state ^ (state >> np.uint64(SHIFTS[1]))) * np.uint64(MIX_2)
    return state ^ (state >> np.uint64(SHIFTS[2]))
