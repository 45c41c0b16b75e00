"""JSON lines survive a crash in the middle of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coma.errors import DataError
from coma.runs.lines import append_line, cut_lines, read_lines, readable_lines


def test_half_a_last_line_is_left_out_and_another_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1}]
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_lines(path)


def test_the_readable_lines_are_of_all_steps_or_of_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(readable_lines(path, 1)) == []
    lines = [{"step": 1}, {"step": 11, "loss": 1}, {"step": 1, "knn": 2.0}]
    path.write_bytes(b"\n".join(json.dumps(line).encode() for line in lines) + b'\n\xff1\n[1]\n{"step": 1, "lo')
    assert list(readable_lines(path)) == lines
    assert list(readable_lines(path, 1)) == [lines[0], lines[2]]


def test_appending_replaces_half_a_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_cutting_keeps_earlier_steps_and_drops_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3, 4)) + '{"step": 1, "lo')
    cut_lines(path, 2)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 2]
    cut_lines(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()
