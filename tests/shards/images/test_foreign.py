import pytest

from coma.shards.images.foreign import foreign_file, foreign_kind

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (POINTER, "a Git LFS pointer (`git lfs pull` fetches what it stands for)"),
        (b"\n <!DOCTYPE html><html>404", "an HTML page"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML message"),
        (b"<?xml version='1.0'?><svg>", "SVG, a drawing"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"path,label\n<html>.jpg,0\n", None),
        (b"", None),
    ],
)
def test_what_files_are_instead(head, kind):
    assert foreign_kind(head) == kind
    assert (foreign_file(head) or "").startswith(kind or ("empty: " if not head else ""))


def test_the_way_out_is_said():
    assert foreign_file(b"\x1f\x8b\x08") == "a gzip archive; unpack it first"
    assert foreign_file(b"<html>") == "an HTML page; a failed download leaves such a file; fetch it again"
    assert foreign_file(POINTER) == foreign_kind(POINTER)
    assert foreign_file(b"text") is None
