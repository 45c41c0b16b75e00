import pytest

from coma.errors import UsageError
from coma.shards.byte_sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("256MiB", 256 * 2**20),
        ("1GB", 10**9),
        ("1.5 kb", 1500),
        ("12345", 12345),
        ("2g", 2 * 10**9),
        ("7B", 7),
    ],
)
def test_sizes(text, count):
    assert parse_bytes(text, "--shard-bytes") == count


@pytest.mark.parametrize("text", ["", "many", "5q", "-1", "1e9", "MiB"])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="--shard-bytes"):
        parse_bytes(text, "--shard-bytes")
