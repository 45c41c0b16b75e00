"""Data sets with their shares, as they are typed."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.errors import UsageError
from coma.shards.shares import MOST_WEIGHT, NamedSource, named_sources, whole_weights


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
        (r"C:\data:2", r"C:\data", Fraction(2)),
        ("s3://bucket:0.5", "s3://bucket", Fraction(1, 2)),
        (f"{'a' * 300}:0.5", "a" * 300, Fraction(1, 2)),
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


@pytest.mark.parametrize("share", ["70%", "1/3", "0,5", "", "half"])
def test_what_is_no_number_after_a_data_set_is_refused(tmp_path: Path, share: str) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match=rf"the share of \S+/a is '{share}'; give a decimal number above 0"):
        named_sources([f"{tmp_path}/a:{share}", "b:1"])


@pytest.mark.parametrize("place", ["s3://bucket", "folder"])
def test_a_pair_is_read_again_from_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A bucket's name before a whole number looks like a host and its port, and a folder may have such a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder:7").mkdir()
    sources = named_sources([(place, 7), ("b", 3)])
    assert named_sources([*map(str, sources)]) == sources
    assert sources[0].share == 7


@given(st.lists(st.integers(1, 10**7), min_size=2, max_size=8))
def test_weights_are_exact_and_without_a_common_divisor(samples: list[int]) -> None:
    weights = whole_weights([NamedSource("a")] * len(samples), samples)
    assert sum(weights) <= MOST_WEIGHT
    assert [Fraction(weight, sum(weights)) for weight in weights] == [Fraction(each, sum(samples)) for each in samples]
    sources = [NamedSource("a", str(each / 1000)) for each in samples]
    assert whole_weights(sources, [1] * len(samples)) == weights


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=8))
def test_shares_with_many_digits_are_rounded_to_a_billionth(shares: list[float]) -> None:
    exact = [Fraction(repr(share)) for share in shares]
    try:
        weights = whole_weights([NamedSource("a", repr(share)) for share in shares], [1] * len(shares))
    except UsageError:
        assert min(exact) / sum(exact) < 2 / Fraction(MOST_WEIGHT)
        return
    for weight, share in zip(weights, exact, strict=True):
        assert abs(Fraction(weight, sum(weights)) - share / sum(exact)) < Fraction(2 * len(shares), MOST_WEIGHT)
