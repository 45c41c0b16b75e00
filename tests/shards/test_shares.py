"""Data sets with their shares, as they are typed."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.shards.shares import MOST_WEIGHT, named_sources, whole_weights


@pytest.mark.parametrize(
    ("text", "place", "share"),
    [
        ("a-shards:0.7", "a-shards", Fraction(7, 10)),
        ("a-shards", "a-shards", None),
        ("a:b:3", "a:b", Fraction(3)),
        ("a:b", "a:b", None),
        ("s3://host:9000/x:0.5", "s3://host:9000/x", Fraction(1, 2)),
        ("s3://host:9000/x", "s3://host:9000/x", None),
        ("s3://host:9000", "s3://host:9000", None),
        ("http://127.0.0.1:8000/x:.25", "http://127.0.0.1:8000/x", Fraction(1, 4)),
        ("gs://bucket/x:1e-2", "gs://bucket/x", Fraction(1, 100)),
        ("C:x", "C:x", None),
    ],
)
def test_a_share_stands_after_the_last_colon(text: str, place: str, share: Fraction | None) -> None:
    other = "other" if share is None else "other:1"
    (source, _) = named_sources([text, other])
    assert (source.place, source.share) == (place, share)
    assert str(source) == text


def test_a_folder_of_that_name_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "a:0.5").mkdir()
    (one, other) = named_sources([f"{tmp_path}/a:0.5", (tmp_path / "b", None)])
    assert one.place == f"{tmp_path}/a:0.5"
    assert one.share is other.share is None


@given(st.lists(st.integers(1, 10**7), min_size=2, max_size=8))
def test_weights_are_exact_and_without_a_common_divisor(samples: list[int]) -> None:
    weights = whole_weights([None] * len(samples), samples)
    assert sum(weights) <= MOST_WEIGHT
    assert [Fraction(weight, sum(weights)) for weight in weights] == [Fraction(each, sum(samples)) for each in samples]
    shares = [Fraction(each, 1000) for each in samples]
    assert whole_weights(shares, [1] * len(samples)) == weights


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=8))
def test_shares_with_many_digits_are_rounded_to_a_billionth(shares: list[float]) -> None:
    exact = [Fraction(repr(share)) for share in shares]
    try:
        weights = whole_weights(exact, [1] * len(shares))
    except Exception:
        assert min(exact) / sum(exact) < 2 / Fraction(MOST_WEIGHT)
        return
    for weight, share in zip(weights, exact, strict=True):
        assert abs(Fraction(weight, sum(weights)) - share / sum(exact)) < Fraction(2 * len(shares), MOST_WEIGHT)
