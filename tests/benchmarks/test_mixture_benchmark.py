import pytest

from benchmarks.mixture import deviations, main


def test_the_shares_are_as_exact_as_is_said() -> None:
    most = deviations(60)
    assert most[2] <= 0.5 + 1e-6
    assert most[3] <= 1 + 1e-6
    assert max(most.values()) < 2


@pytest.mark.slow
def test_it_prints_three_tables(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--mixes", "50", "--steps", "2", "--rounds", "2", "--batch-size", "1"])
    shown = capsys.readouterr().out
    assert "images off its share" in shown
    assert "8 data sets" in shown
    assert "of a step's CPU time" in shown
