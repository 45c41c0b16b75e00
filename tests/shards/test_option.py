"""Options as fields of a dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from coma.errors import UsageError
from coma.shards.option import identity_of, option, option_like, options_of, validate


@dataclass(frozen=True, kw_only=True)
class Base:
    size: int | None = option(None, help="Size.", least=1, identity=True)
    rate: float = option(0.5, help="Rate.", above=0, below=1)
    plain: int = 3
    """No option."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    size: int | None = option_like(Base, "size", 7, help="Other size.")
    place: Path | str | None = option(None, help="Place.", flag="--to")
    how: Literal["fast", "well"] = option("well", help="How.")
    source: Path = option(help="Source.", argument=True)
    count: int | Literal["auto", "all"] | None = option(None, help="Count.", least=1)


def test_a_class_has_its_own_options_first_and_those_of_its_base_after_them() -> None:
    described = {each.name: each for each in options_of(Derived)}
    assert list(described) == ["place", "how", "source", "count", "size", "rate"]
    assert described["size"].help == "Other size."
    assert (described["size"].least, described["size"].default) == (1, 7)
    assert described["place"].flag == "--to"
    assert described["source"].default is ...
    assert [each.kind for each in described.values()] == [str, str, Path, int, int, float]
    assert described["how"].choices == ("fast", "well")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 0}, "--size is 0; it must be at least 1"),
        ({"rate": 1.0}, "--rate is 1.0; it must be above 0 and below 1"),
        ({"rate": float("nan")}, "--rate is nan; it must be"),
        ({"rate": float("inf")}, "--rate is inf; it must be"),
        ({"count": 0}, "--count is 0; it must be at least 1, or auto or all"),
        ({"count": "many"}, "--count is 'many'; it must be at least 1, or auto or all"),
        ({"how": "soon"}, "--how is 'soon'; it must be fast or well"),
    ],
)
def test_limits(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Derived(source=Path("x"), **given)


@pytest.mark.parametrize("count", [3, "auto", "all", None])
def test_a_number_may_have_words_beside_it(count: int | Literal["auto", "all"] | None) -> None:
    assert Derived(source=Path("x"), count=count).count == count


def test_nothing_is_within_all_limits_and_the_identity_is_by_flag() -> None:
    assert identity_of(Derived(source=Path("x"), size=None)) == {"--size": None}
    assert identity_of(Base(size=2)) == {"--size": 2}
