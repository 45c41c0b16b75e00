from itertools import pairwise

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from coma.shards.write.layout import cut_into_shards, shuffled_order


@given(st.integers(1, 500), st.integers(0, 2**63 - 1))
def test_shuffled_is_a_permutation_that_the_seed_alone_decides(count, seed):
    order = shuffled_order(count, seed, "train")
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, shuffled_order(count, seed, "train"))


def test_shuffled_ranks_by_splitmix64():
    wrap = 2**64 - 1
    state = xxhash.xxh3_64_intdigest(b"7/train")
    ranks = []
    for _ in range(50):
        state = (state + 0x9E3779B97F4A7C15) & wrap
        x = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & wrap
        ranks.append(x ^ (x >> 31))
    assert shuffled_order(50, 7, "train").tolist() == sorted(range(50), key=ranks.__getitem__)


def test_shuffled_depends_on_seed_and_split_and_mixes():
    base = shuffled_order(10_000, 0, "train")
    for other in (shuffled_order(10_000, 1, "train"), shuffled_order(10_000, 0, "val")):
        assert (base == other).mean() < 0.01
    assert abs(np.corrcoef(base, np.arange(10_000))[0, 1]) < 0.05
    assert (np.diff(base) == 1).sum() < 10


@given(st.lists(st.integers(-1, 5000), min_size=1, max_size=200), st.integers(1, 60_000))
def test_cut_covers_every_image_once_in_order(sizes, shard_bytes):
    shards, _ = cut_into_shards(np.array(sizes, np.int64), "train", shard_bytes)
    assert [s.number for s in shards] == list(range(len(shards)))
    assert shards[0].start == 0
    assert shards[-1].stop == len(sizes)
    assert all(s.start < s.stop for s in shards)
    assert all(a.stop == b.start for a, b in pairwise(shards))


def test_cut_makes_shards_of_even_size_no_larger_than_asked():
    sizes = np.random.default_rng(0).integers(1000, 9000, 2000)
    shards, total = cut_into_shards(sizes, "train", 500_000)
    tar_bytes = [int((-(-sizes[s.start : s.stop] // 512) * 512 + 512 + 2048).sum()) for s in shards]
    assert sum(tar_bytes) == total
    assert max(tar_bytes) <= 500_000 + 12_000
    assert max(tar_bytes) - min(tar_bytes) < 24_000
    assert shards[3].name == "coma-train-000003"


def test_cut_makes_a_shard_an_image_when_that_is_asked_for():
    assert len(cut_into_shards(np.full(7, 100), "train", 1)[0]) == 7
