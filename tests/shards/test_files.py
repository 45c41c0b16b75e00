import pytest

from coma.shards.files import remove_temporaries, replacing, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half", None])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_our_temporaries_are_removed(tmp_path):
    ours = tmp_path / ".x.tar.123.coma-tmp"
    theirs = [tmp_path / ".x.tmp", tmp_path / "x.tar", tmp_path / "y.coma-tmp"]
    for path in (ours, *theirs):
        path.write_bytes(b"")
    remove_temporaries(tmp_path)
    assert not ours.exists()
    assert all(path.exists() for path in theirs)
