"""Headers against webdataset's writer; the walk against the standard library's tarfile, and against malice."""

import contextlib
import io
import os
import subprocess
import tarfile
import tracemalloc

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from coma.shards import tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def packed(*members, form=tarfile.USTAR_FORMAT):
    """A tar of (name, data) or TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def of_type(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def raw(name, size, kind=b"0", data=b"", magic=b"ustar\x0000"):
    """One member with a right checksum and whatever else; `size` is a number or the field's bytes."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = field
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + tar.padding(len(data))


END = bytes(1024)


def walk(tmp_path, data, **limits):
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with path.open("rb") as file:
        return [
            (member.name, member.kind, data[member.offset : member.offset + member.size])
            for member in tar.members(file.fileno(), **limits)
        ]


def by_tarfile(data):
    kinds = {tarfile.DIRTYPE: "folder", tarfile.LNKTYPE: "link", tarfile.SYMTYPE: "link"}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [
            (
                member.name + "/" * member.isdir(),
                "file" if member.isreg() else kinds.get(member.type, "special"),
                archive.extractfile(member).read() if member.isreg() else b"",
            )
            for member in archive
        ]


@given(
    st.from_regex(r"[!-~]{1,100}", fullmatch=True).filter(lambda name: name[0] != "_" and name[-1] != "/"),
    st.binary(max_size=1500),
)
@settings(max_examples=200)
def test_what_we_write_is_what_webdataset_writes(name, data):
    file = io.BytesIO()
    writer = webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False)
    writer.write({"__key__": "key", name: data})
    writer.close()
    name = f"key.{name}"
    if len(name) > 100:
        with pytest.raises(ValueError, match="a USTAR member cannot"):
            tar.header(name.encode(), len(data))
        return
    ours = tar.header(name.encode(), len(data)) + data + tar.padding(len(data))
    assert ours + tar.ending(len(ours)) == file.getvalue()


names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=6,
).map("/".join)


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_any_archive_is_walked_as_tarfile_walks_it(form, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")

    @given(st.lists(st.tuples(names, st.binary(max_size=1100)), min_size=1, max_size=5))
    @settings(max_examples=60)
    def same(members):
        data = packed(*members, form=FORMATS[form])
        assert walk(folder, data) == by_tarfile(data)
        assert [(name, content) for name, _, content in walk(folder, data)] == members

    same()


@pytest.mark.parametrize("form", FORMATS)
def test_every_kind_of_member(form, tmp_path):
    long_name = "/".join(["n" * 60] * 3) + "/photo.jpg"
    data = packed(
        of_type("folder", tarfile.DIRTYPE),
        ("folder/a.jpg", b"a" * 700),
        (long_name, b"long"),
        ("../up.jpg", b"up"),
        ("/etc/absolute.jpg", b"abs"),
        of_type("link.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"),
        of_type("hard.jpg", tarfile.LNKTYPE, linkname="folder/a.jpg"),
        of_type("device.jpg", tarfile.CHRTYPE),
        of_type("pipe.jpg", tarfile.FIFOTYPE),
        of_type("contiguous.jpg", tarfile.CONTTYPE),
        ("last.jpg", b""),
        form=FORMATS[form],
    )
    found = walk(tmp_path, data)
    assert found == by_tarfile(data)
    assert [kind for _, kind, _ in found] == [
        *("folder", "file", "file", "file", "file", "link", "link", "special", "special", "file", "file")
    ]


def test_sizes_and_names_of_older_and_larger_archives(tmp_path):
    data = b"".join(
        [
            raw(b"v7.jpg", 2, b"\0", b"v7", magic=b""),
            raw(b"v7 folder/", 600, b"\0", magic=b""),  # folders have no data, whatever they claim
            raw(b"base 256.jpg", b"\x80" + (3).to_bytes(11, "big"), data=b"256"),
            raw(b"blanks.jpg", b"         12 ", data=b"b" * 10),
            raw(b"link", 600, b"2"),
            raw("signed é.jpg".encode("latin-1"), 1, data=b"s"),
            END,
        ]
    )
    assert walk(tmp_path, data) == by_tarfile(data)
    block = bytearray(raw("signed é.jpg".encode("latin-1"), 0))
    block[148:154] = b"%06o" % (int(block[148:154], 8) - 256)
    assert walk(tmp_path, bytes(block) + END) == by_tarfile(bytes(block) + END)


def test_pax_sizes_count(tmp_path):
    records = b"10 size=5\n" + b"16 path=big.jpg\n"
    data = raw(b"x", len(records), b"x", records) + raw(b"short", 0, data=b"12345") + raw(b"next", 1, data=b"n") + END
    assert walk(tmp_path, data) == by_tarfile(data) == [("big.jpg", "file", b"12345"), ("next", "file", b"n")]


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_files_are_special_and_stepped_over(form, tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        for i in range(40):  # more pieces than a GNU header has room for
            file.seek(i * 200_000)
            file.write(b"x")
    (tmp_path / "plain.jpg").write_bytes(b"plain")
    subprocess.run(
        ["tar", "--sparse", f"--format={form}", "-cf", "s.tar", "sparse.jpg", "plain.jpg"],
        cwd=tmp_path,
        check=True,
    )
    found = walk(tmp_path, (tmp_path / "s.tar").read_bytes())
    assert [(name, kind) for name, kind, _ in found] == [("sparse.jpg", "special"), ("plain.jpg", "file")]
    assert found[1][2] == b"plain"


def test_a_tar_in_a_tar_is_walked_in_place(tmp_path):
    inner = packed(("a.jpg", b"a"), ("b.jpg", b"bb"))
    outer = packed(("first", b"1"), ("inner.tar", inner), ("last", b"2"))
    path = tmp_path / "outer.tar"
    path.write_bytes(outer)
    with path.open("rb") as file:
        (_, nested, _) = tar.members(file.fileno())
        found = list(tar.members(file.fileno(), nested.offset, nested.offset + nested.size))
        assert [(member.name, outer[member.offset :][: member.size]) for member in found] == [
            ("a.jpg", b"a"),
            ("b.jpg", b"bb"),
        ]
        with pytest.raises(tar.TarError, match="cut short"):
            list(tar.members(file.fileno(), nested.offset, nested.offset + 1100))


def test_members_before_the_damage_are_given_first(tmp_path):
    data = packed(("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600))
    path = tmp_path / "x.tar"
    path.write_bytes(data[:2000])
    with path.open("rb") as file:
        walked = tar.members(file.fileno())
        assert next(walked).name == "a.jpg"
        with pytest.raises(tar.TarError, match="cut short: a header is missing at byte 1,536"):
            next(walked)


TWO = packed(("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600))
PAX = packed(("a" * 120, b"a"), form=tarfile.PAX_FORMAT)
CUT = {
    "in the first header": (TWO[:400], "not a tar"),
    "in a header": (TWO[:2000], "a header is missing at byte 1,536"),
    "in the data": (TWO[:2500], "the member at byte 1,536 claims 600 bytes, 452 follow"),
    "in the padding": (TWO[:2900], "the member at byte 1,536 claims 600 bytes, its padding is missing"),
    "in a PAX header": (PAX[:600], "the member at byte 0 claims"),
    "behind a PAX header": (PAX[:1024], "a header is missing at byte 1,024"),
}


@pytest.mark.parametrize("where", CUT)
def test_cut_short(where, tmp_path):
    data, message = CUT[where]
    with pytest.raises(tar.TarError, match=message):
        walk(tmp_path, data)


def test_the_zero_blocks_at_the_end_may_be_missing_and_are_missed(tmp_path):
    whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
    whole.write_bytes(TWO)
    cut.write_bytes(TWO[:3072])
    assert walk(tmp_path, TWO[:3072]) == walk(tmp_path, TWO)
    for path, ended in ((whole, True), (cut, False)):
        with path.open("rb") as file:
            assert tar.has_ending(file.fileno()) == ended


def test_damage(tmp_path):
    flipped = bytearray(TWO)
    flipped[1536] ^= 1
    with pytest.raises(tar.TarError, match="damaged: there is no header at byte 1,536"):
        walk(tmp_path, bytes(flipped))
    with pytest.raises(tar.TarError, match="not a tar: there is no header"):
        walk(tmp_path, b"<html>" * 1000)
    with pytest.raises(tar.TarError, match="not a tar: it is empty"):
        walk(tmp_path, b"")
    with pytest.raises(tar.TarError, match=r"two archives in one: the first ends at byte 3,072, .* byte 10,240"):
        walk(tmp_path, TWO + TWO)
    assert walk(tmp_path, TWO + b"rubbish") == walk(tmp_path, TWO)


LIES = {
    "size past the end": raw(b"x", 10**9) + END,
    "size past all ends": raw(b"x", b"\x80" + b"\xff" * 11) + END,
    "negative size": raw(b"x", b"\xff" * 12) + END,
    "size of no digits": raw(b"x", b"1_000000000\0") + END,
    "PAX of 10 GB": raw(b"x", b"\x80" + (10**10).to_bytes(11, "big"), b"x") + END,
    "name of 10 GB": raw(b"x", b"\x80" + (10**10).to_bytes(11, "big"), b"L") + END,
    "PAX size past the end": raw(b"x", 20, b"x", b"20 size=99999999999\n") + raw(b"x", 0) + END,
    "PAX size of 4000 digits": raw(b"x", 4010, b"x", b"4010 size=" + b"9" * 3999 + b"\n") + raw(b"x", 0) + END,
    "PAX size of no digits": raw(b"x", 11, b"x", b"11 size=-1\n") + raw(b"x", 0) + END,
    "PAX record past the end": raw(b"x", 11, b"x", b"99 path=ab\n") + raw(b"x", 0) + END,
    "PAX record of no length": raw(b"x", 11, b"x", b"00 path=ab\n") + raw(b"x", 0) + END,
    "PAX rubbish": raw(b"x", 11, b"x", b"\xff" * 11) + raw(b"x", 0) + END,
    "a map without an end": b"".join([raw(b"x", 0, b"S")[:482], b"\1", bytes(29), bytes([1]) * 512 * 5]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_in_little_memory(lie, tmp_path):
    tracemalloc.start()
    with pytest.raises(tar.TarError):
        walk(tmp_path, LIES[lie])
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_long_header_that_the_file_does_hold_is_refused_too(tmp_path):
    path = tmp_path / "holes.tar"
    with path.open("wb") as file:
        file.write(raw(b"x", b"\x80" + (10**10).to_bytes(11, "big"), b"x"))
        file.truncate(2 * 10**10)
    with path.open("rb") as file, pytest.raises(tar.TarError, match="claims a name of 10,000,000,000 bytes"):
        list(tar.members(file.fileno()))


def test_long_names_without_end(tmp_path):
    many = raw(b"L", 5, b"L", b"name\0") * 3000
    with pytest.raises(tar.TarError, match="cut short: a header is missing"):
        walk(tmp_path, many)
    assert walk(tmp_path, many + raw(b"x", 0) + END) == [("name", "file", b"")]


def test_a_million_tiny_members_take_little_memory(tmp_path):
    path = tmp_path / "tiny.tar"
    chunk = raw(b"tiny.jpg", 1, data=b"x") * 1000
    with path.open("wb") as file:
        for _ in range(200):  # times 1000; what a million takes shows on a fifth
            file.write(chunk)
        file.write(END)
    tracemalloc.start()
    with path.open("rb") as file:
        count = 0
        for member in tar.members(file.fileno()):
            count += member.size
            if count == 20_000:
                tracemalloc.stop()  # it slows the walk down
                break
            assert count % 1000 or tracemalloc.get_traced_memory()[1] < 1_000_000
        count += sum(member.size for member in tar.members(file.fileno()))
    assert count == 220_000


@pytest.mark.parametrize("tool", ["gzip", "xz", "bzip2"])
def test_what_is_packed_is_named_with_the_way_out(tool, tmp_path):
    import bz2
    import gzip
    import lzma

    data = {"gzip": gzip, "xz": lzma, "bzip2": bz2}[tool].compress(TWO)
    way_out = {"gzip": "gunzip", "xz": "unxz", "bzip2": "bunzip2"}[tool]
    with pytest.raises(tar.PackedTarError, match=rf"packed with {tool}: unpack it first \({way_out}\)"):
        walk(tmp_path, data)


def test_other_packers_are_known_by_their_first_bytes(tmp_path):
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", os.urandom(2000))
    with pytest.raises(tar.PackedTarError, match="zip: unpack it first"):
        walk(tmp_path, file.getvalue())
    with pytest.raises(tar.PackedTarError, match="zstd"):
        walk(tmp_path, b"\x28\xb5\x2f\xfd" + os.urandom(2000))
    assert walk(tmp_path, packed(("BZh.jpg", b"x"))) == [("BZh.jpg", "file", b"x")]


@given(st.data())
@settings(max_examples=150)
def test_whatever_is_overwritten_the_walk_ends(tmp_path_factory, data):
    archive = bytearray(packed(("a" * 120, b"a" * 700), ("b.jpg", b"b"), form=tarfile.PAX_FORMAT)[:6144])
    at = data.draw(st.integers(0, len(archive) - 1))
    rubbish = data.draw(st.binary(min_size=1, max_size=40))
    archive[at : at + len(rubbish)] = rubbish
    path = tmp_path_factory.getbasetemp() / "rubbish.tar"
    path.write_bytes(archive)
    with path.open("rb") as file, contextlib.suppress(tar.TarError):
        for member in tar.members(file.fileno()):
            assert member.offset + member.size <= len(archive)
