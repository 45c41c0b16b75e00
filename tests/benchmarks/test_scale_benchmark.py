"""Very many samples: what is promised of memory, on a tenth of what it is promised for."""

import pytest

from benchmarks.scale import measure

MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize("in_order", [False, True])
def test_ten_million_samples_take_little_memory(tmp_path, in_order):
    """The columns have 400 MB: far more than either process may take on top of what its imports do."""
    result = measure(10**7, 2300, in_order, tmp_path)
    once, again = result["once"], result["again"]
    assert result["column_bytes"] > 40 * 10**7
    assert once["fingerprint"] == again["fingerprint"]
    assert once["peak_bytes"] - once["imports_bytes"] < 200 * MIB
    assert again["peak_bytes"] - again["imports_bytes"] < 150 * MIB
