import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from upath import UPath

from coma.errors import DataError
from coma.shards import tar
from coma.shards.check.verify import verify
from coma.shards.index.index import index
from coma.shards.manifest import load_manifest, read_manifest, schema
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard


@pytest.fixture(scope="module")
def made(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("made")
    source = tree(folder / "pets")
    (source / "cat/bad.jpg").write_bytes(b"")
    shard(source, folder / "out", ShardOptions(shard_bytes=20_000, workers=1, val_fraction=0.2))
    return folder / "out"


@pytest.fixture
def data(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def found(data, **options):
    """(split, shard, key, reason) of everything that differs."""
    return [(p.split, p.shard, p.key, p.reason) for p in verify(data, workers=2, **options).problems]


def reasons_of(data, name):
    return [reason for _, shard, _, reason in found(data) if shard == name]


def poke(path, offset, new=None):
    with path.open("r+b") as file:
        file.seek(offset)
        new = bytes([file.read(1)[0] ^ 0xFF]) if new is None else new
        file.seek(offset)
        file.write(new)


def sample(data, row):
    """A sample of split train: its tar, its key, its members by suffix."""
    manifest = read_manifest(data)
    path = data / "train" / manifest.shards[manifest.shard_id[row]]
    (key,) = manifest.keys([row])
    with path.open("rb") as file:
        members = list(tar.members(file.fileno()))
    return path, key, {m.name.split(".")[1]: m for m in members if m.name.startswith(key)}


def rewritten(path, change):
    """Write a tar again, and its index; `change(name, data)` gives the members that replace one."""
    members = []
    with tarfile.open(path) as old:
        for member in old:
            members += change(member.name, old.extractfile(member).read())
    out, lines, keys = io.BytesIO(), [], {}
    for name, content in members:
        out.write(tar.header(name.encode(), len(content)))
        keys.setdefault(name.split(".")[0], []).append(f"{name.split('.', 1)[1]} {out.tell()} {len(content)} {name}")
        out.write(content + tar.padding(len(content)))
    out.write(tar.ending(out.tell()))
    path.write_bytes(out.getvalue())
    lines = [" ".join(line) for line in keys.values()]
    path.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(lines)}", *lines, ""]))


@pytest.mark.parametrize("decode", [False, True])
def test_sound_data_have_no_problems(data, decode):
    seen = []
    report = verify(data, decode=decode, progress=seen.append)
    assert report.problems == ()
    assert report.samples == 18
    assert seen[-1].image_bytes == seen[-1].total_image_bytes == report.image_bytes
    assert seen[-1].shards == report.shards


@pytest.mark.parametrize("decode", [False, True])
def test_one_flipped_byte_of_an_image_is_named(data, decode):
    path, key, members = sample(data, 4)
    poke(path, members["jpg"].offset + members["jpg"].size - 1)
    assert found(data, decode=decode) == [
        ("train", path.name, key, "its bytes are not what they were (the hash differs)")
    ]


def test_any_flipped_byte_is_noticed(data):
    path, _, members = sample(data, 1)
    whole = path.read_bytes()
    first = min(member.offset for member in members.values()) - tar.BLOCK_BYTES
    for offset in (*range(first, first + 3500, 61), len(whole) - 1, len(whole) - 9000):
        poke(path, offset)
        assert found(data), offset
        path.write_bytes(whole)
    assert not found(data)


def test_labels_and_descriptions_that_disagree_are_named(data):
    path, key, members = sample(data, 2)
    poke(path, members["cls"].offset, b"7")
    about = members["json"]
    with path.open("rb") as file:
        text = os.pread(file.fileno(), about.size, about.offset)
    poke(path, about.offset, text.replace(b'"width": ', b'"width":9'))
    problems = found(data)
    assert {(shard, where) for _, shard, where, _ in problems} == {(path.name, key)}
    says = " / ".join(reason for *_, reason in problems)
    assert "its .cls says 7, not " in says
    assert "its .json says width '9" in says
    poke(path, about.offset, b"[")
    assert "its .json is damaged" in [reason for *_, reason in found(data)]


def test_missing_and_extra_members_are_named(data):
    path, key, _ = sample(data, 0)

    def change(name, content):
        if name == f"{key}.json":
            return [(f"{key}.txt", content)]
        if name == f"{key}.jpg":
            return [(name, content), ("999999999.jpg", content), ("999999999.cls", b"0")]
        return [(name, content)]

    rewritten(path, change)
    problems = [(where, reason) for _, _, where, reason in found(data)]
    assert (key, "lacks its .json") in problems
    assert ("999999999", "is not in the manifest") in problems


def test_a_sample_that_moved_is_named(data):
    path, key, _ = sample(data, 1)
    rewritten(path, lambda name, content: [(name, content + b" " if name == f"{key}.cls" else content)])
    assert [(where, reason[:10]) for _, _, where, reason in found(data)] == [(key, "its .cls s")]
    first = sample(data, 0)[1]
    rewritten(
        path,
        lambda name, content: [(name, content), (f"{first}.txt", b"!")][: 2 if name == f"{first}.jpg" else 1],
    )
    assert {(where, "its image lies at byte" in reason) for _, _, where, reason in found(data)} >= {(key, True)}


def test_missing_cut_swapped_and_unlisted_shards_are_all_named(data):
    manifest = read_manifest(data)
    first, second, third = (data / "train" / name for name in manifest.shards[:3])
    first.unlink()
    os.truncate(second, int(manifest.offset[manifest.shard_id == 1][-1] + 10))
    shutil.copy(data / "val/coma-val-000000.tar", third)
    shutil.copy(data / "val/coma-val-000000.tar", data / "train/coma-train-000099.tar")
    shutil.copy(data / "val/coma-val-000000.tar", data / "more.tar")
    (data / "old").mkdir()
    shutil.copy(data / "val/coma-val-000000.tar", data / "old/x.tar")
    assert reasons_of(data, first.name) == ["cannot be read: no such file"]
    cut = reasons_of(data, second.name)
    assert cut[0].startswith("cut short: the member at byte")
    assert any("lacks its .jpg" in reason for reason in cut)
    assert len(reasons_of(data, third.name)) > 2
    assert "not in the manifest" in reasons_of(data, "coma-train-000099.tar")[0]
    assert "not in any split" in reasons_of(data, "more.tar")[0]
    assert reasons_of(data, "x.tar") == ["in a folder that is no split of _info.json"]


def test_the_ending_of_a_tar(data):
    path, _, _ = sample(data, 0)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 512)
    assert reasons_of(data, path.name) == ["512 bytes of something else follow its end"]
    poke(path, len(whole) - 1, b"x")
    assert "something else" in reasons_of(data, path.name)[0]
    path.write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    assert "of the zeros at its end are missing" in reasons_of(data, path.name)[0]


def test_damage_in_the_middle_leaves_the_rest_checked(data):
    path, key, members = sample(data, 1)
    poke(path, members["cls"].offset - 300)
    says = reasons_of(data, path.name)
    assert says[0].startswith("damaged: there is no header at byte")
    assert f"from {key} on are whole, but lie behind the damage" in says[1]
    assert len(says) == 2


def test_the_index_is_checked(data):
    path, _, _ = sample(data, 0)
    index = path.with_suffix(".idx")
    text = index.read_text()
    index.write_text(text.replace("cls 512 ", "cls 513 ", 1))
    assert reasons_of(data, path.name) == [f"{index.name} is not the tar's index: line 2 differs"]
    index.write_text(text + "more\n")
    assert "is not the tar's index" in reasons_of(data, path.name)[0]
    index.unlink()
    assert "is missing: DALI" in reasons_of(data, path.name)[0]


def test_what_is_said_of_the_data_is_checked(data):
    info = json.loads((data / "_info.json").read_text())
    info["splits"]["train"]["num_samples"] += 1
    info["splits"]["train"]["filenames"][0] = "train/other.tar"
    info["coma"]["splits"]["val"]["fingerprint"] = "0" * 16
    info["coma"]["found"] += 1
    (data / "_info.json").write_text(json.dumps(info))
    (data / "quarantine.parquet").write_bytes(b"PAR1")
    assert {(split, name, reason.split(" is ")[0][:16]) for split, name, _, reason in found(data)} == {
        ("train", "_info.json", "num_samples"),
        ("train", "_info.json", "filenames"),
        ("val", "_info.json", "fingerprint"),
        ("", "_info.json", "says 20 images w"),
        ("", "quarantine.parquet", "cannot be read: "),
    }
    (data / "quarantine.parquet").unlink()
    assert reasons_of(data, "quarantine.parquet") == ["missing, and images were set aside"]


def test_the_quarantine_counts_as_the_data_set_does(data):
    path = data / "quarantine.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    assert reasons_of(data, path.name) == ["lists 2 images as empty, _info.json counts 1"]


def test_a_lost_manifest_of_one_split_is_named_and_a_damaged_one_raised(data):
    (data / "val/manifest.parquet").rename(data / "kept")
    assert "missing, and _info.json has this split" in reasons_of(data, "manifest.parquet")
    (data / "val/manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is not a manifest"):
        verify(data)


def test_a_split_can_be_checked_alone(data):
    (data / "train/coma-train-000000.tar").unlink()
    assert found(data / "val") == []
    assert len(found(data)) == 1


def test_a_data_set_in_a_store(data):
    store = UPath("memory://verify/data")
    for path in filter(Path.is_file, data.rglob("*")):
        copy = store / str(path.relative_to(data))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert found(store, decode=True) == []
    first, second = sorted((store / "train").glob("*.tar"), key=str)[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    assert [(name, reason[:12]) for _, name, _, reason in found(store)] == [
        (first.name, "cannot be re"),
        (second.name, "cut short: 1"),
    ]


def test_a_pipe_or_a_folder_in_place_of_a_shard(data):
    first, second = sorted((data / "train").glob("*.tar"))[:2]
    first.unlink()
    os.mkfifo(first)
    second.unlink()
    second.mkdir()
    assert {name for _, name, _, reason in found(data) if reason.startswith("cannot be read")} == {
        first.name,
        second.name,
    }


def test_tars_that_were_only_indexed_are_checked_for_their_images(tmp_path, image):
    folder = tmp_path / "theirs/train"
    folder.mkdir(parents=True)
    path = folder / "part 1.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for i in range(3):
            for suffix, content in (("seg.png", b"?"), ("jpg", image(i)), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"a.b/{'é' * 70}/{i}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    with path.open("rb") as file:
        images = [m for m in tar.members(file.fileno()) if m.name.endswith(".jpg")]
    rows = [
        {
            **{"key": member.name[:-4], "shard": path.name, "offset": member.offset, "size": member.size},
            **{"width": 40, "height": 30, "format": "jpeg", "label": None, "source": member.name},
            "xxh3_64": xxhash.xxh3_64_intdigest(image(i)),
        }
        for i, member in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema(None)), folder / "manifest.parquet")
    assert len(load_manifest(folder)) == 3
    assert found(folder, decode=True) == []
    poke(path, images[1].offset)
    assert [(key, reason[:9]) for _, _, key, reason in found(folder)] == [(rows[1]["key"], "its bytes")]
    poke(path, images[1].offset)
    poke(path, images[2].offset - 300)
    assert [key for _, _, key, _ in found(folder)] == ["", ""]


def test_an_indexed_data_set_is_checked(data, tmp_path):
    """Of our own tars even: their .json says what was, not what the index calls it."""
    index(data / "train", tmp_path / "indexed", workers=1)
    assert found(tmp_path / "indexed", decode=True) == []
    path, _, members = sample(data, 3)
    poke(path, members["jpg"].offset)
    assert ["hash differs" in reason for *_, reason in found(tmp_path / "indexed")] == [True]


def test_the_data_set_s_own_pixel_limit_counts(data):
    info = json.loads((data / "_info.json").read_text())
    info["coma"]["plan"]["max_pixels"] = 100
    (data / "_info.json").write_text(json.dumps(info))
    assert len(found(data, decode=True)) == 18
    assert found(data) == []


def test_no_data(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(DataError):
        verify(tmp_path)
