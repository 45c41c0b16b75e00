import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from coma.pipeline.counter import below, hash_numpy, hash_on, hash_torch, uniform

INT64 = st.integers(-(2**63), 2**63 - 1)


def test_first_outputs_are_those_of_splitmix64() -> None:
    # splitmix64.c by Sebastiano Vigna, seed 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(hash_numpy(index)) for index in range(3)] == expected


@given(st.lists(INT64, min_size=1, max_size=5), st.integers(-(2**70), 2**70), INT64)
def test_torch_and_numpy_give_the_same_bits(keys: list[int], scalar: int, last: int) -> None:
    array = np.array(keys, np.int64)
    in_numpy = hash_numpy(scalar, array, last)
    in_torch = hash_torch(scalar, torch.from_numpy(array), last)
    assert in_numpy.dtype == np.uint64
    np.testing.assert_array_equal(in_numpy.view(np.int64), in_torch.numpy())


def test_a_hash_goes_on_from_where_it_was() -> None:
    keys = np.arange(5)
    np.testing.assert_array_equal(hash_on(hash_numpy(3, keys), 7, keys), hash_numpy(3, keys, 7, keys))


def test_keys_that_differ_at_the_end_alone_never_collide() -> None:
    assert len(np.unique(hash_numpy(1, 2, np.arange(10**6)))) == 10**6


def test_keys_broadcast() -> None:
    table = hash_numpy(7, np.arange(3)[:, None], np.arange(4)[None, :])
    assert table.shape == (3, 4)
    assert int(table[2, 1]) == int(hash_numpy(7, 2, 1))


def test_neighbouring_keys_are_unrelated() -> None:
    bits = hash_numpy(np.arange(64)[:, None], np.arange(256)[None, :])
    assert len(np.unique(bits)) == bits.size
    draws = uniform(bits)
    assert abs(draws.mean() - 0.5) < 0.01
    correlation = np.corrcoef(draws)[~np.eye(64, dtype=bool)]
    assert abs(correlation).max() < 0.35  # 5.5 standard errors of 256 independent pairs


def test_uniform_and_below_stay_in_range() -> None:
    ends = np.array([0, 2**64 - 1], np.uint64)
    assert uniform(ends)[0] == 0
    assert uniform(ends)[1] < 1
    assert set(below(hash_numpy(np.arange(200)), 5)) == {0, 1, 2, 3, 4}
