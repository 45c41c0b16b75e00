"""The benchmark of dense evaluation scores each network once and says what pre-training gains."""

import pytest

from benchmarks import dense


def test_the_table_has_gains_and_the_least_of_them():
    scores = [
        {"miou": 30.0, "miou_knn": 20.0},
        {"miou": 50.0, "miou_knn": 33.0},
        {"miou": 31.0, "miou_knn": 21.0},
        {"miou": 49.0, "miou_knn": 27.0},
    ]
    lines = dense.table(scores).splitlines()
    assert lines[2:5] == [
        "| 0 | 30.0 | 50.0 | 20.0 | 20.0 | 33.0 | 13.0 |",
        "| 1 | 31.0 | 49.0 | 18.0 | 21.0 | 27.0 | 6.0 |",
        "| mean | 30.5 | 49.5 | 19.0 | 20.5 | 30.0 | 9.5 |",
    ]
    assert lines[-1] == "least gain 6.0 points of mIoU; the bar is 5"


@pytest.mark.slow
def test_it_resumes_what_is_there(tmp_path, capsys):
    few = [str(tmp_path / "out"), "--seeds", "1", "--steps", "2", "--train", "20", "--val", "10", "--patches", "100"]
    first = dense.main(few)
    assert [(line["seed"], line["trained"]) for line in first] == [(0, False), (0, True)]
    assert first[0]["miou"] != first[1]["miou"]
    printed = capsys.readouterr().out
    assert dense.main(few) == first
    assert printed.splitlines()[-4:] == capsys.readouterr().out.splitlines()[-4:]
