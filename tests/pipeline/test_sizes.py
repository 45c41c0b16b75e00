import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.errors import UsageError
from coma.pipeline.sizes import CropSizes


def test_crops_grow_by_a_unit_at_a_time_and_end_with_a_fifth_at_full_size() -> None:
    sizes = CropSizes(128, 224, 32, samples=1500)
    sides = [sizes.at(stop) for stop in range(1, 1501)]
    assert {side: sides.count(side) for side in sides} == {128: 399, 160: 400, 192: 400, 224: 301}
    assert [sizes.units(side) for side in (128, 224)] == [16, 49]
    assert sizes.at(15_000) == 224  # whoever goes on past the end


@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from([1, 16, 32]), st.integers(1, 10**9), st.data())
def test_sides_never_shrink_and_the_last_step_is_at_full_size(
    first: int, growths: int, unit: int, samples: int, data: st.DataObject
) -> None:
    sizes = CropSizes(first * unit, (first + growths) * unit, unit, samples)
    early, late = sorted(data.draw(st.tuples(st.integers(1, samples), st.integers(1, samples))))
    assert sizes.first <= sizes.at(early) <= sizes.at(late) <= sizes.last
    assert sizes.at(late) % unit == 0
    assert sizes.at(-(-4 * samples // 5)) == sizes.at(samples) == sizes.last


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((100, 224, 32), "start size 100 is no multiple of the mask unit's 32 pixels; take 96"),
        ((128, 225, 32), "image size 225 is no multiple of the mask unit's 32 pixels; take 224"),
        ((4, 32, 32), "start size 4 .* take 32"),
        ((256, 224, 32), "start size 256 is above the image size 224"),
        ((128, 224, 0), "mask unit's 0 pixels"),
        ((128, 224, 32, 0), "0 samples"),
    ],
)
def test_what_cannot_be_is_refused(wrong: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CropSizes(*wrong)
