"""The same shards, byte for byte, whoever writes them and wherever they go."""

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from coma.errors import UsageError
from coma.shards.check.verify import verify
from coma.shards.describe.describe import describe
from coma.shards.files import folder_at
from coma.shards.write.dry_run import dry_run
from coma.shards.write.options import ShardOptions, parse_part
from coma.shards.write.writer import shard

SMALL = {"shard_bytes": 20_000, "workers": 1, "val_fraction": 0.25}


@pytest.fixture(scope="module")
def pets(tmp_path_factory, tree, image, contents):
    """A source with something of everything, and the data set that one process makes of it."""
    folder = tmp_path_factory.mktemp("pets")
    source = tree(folder / "pets", per_class=8)
    (source / "cat/bad.jpg").write_bytes(b"bad")
    (source / "dog/named.jpg").write_bytes(image(99, form="PNG"))
    (source / "emu/copy.jpg").write_bytes((source / "cat/000.JPEG").read_bytes())
    summary = shard(source, folder / "out", ShardOptions(**SMALL, dedupe=True))
    assert summary.shards >= 6
    assert summary.reasons == {"duplicate": 1, "not an image": 1}
    return source, contents(folder / "out")


def part(number, parts=4):
    return ShardOptions(**SMALL, dedupe=True, part=(number, parts))


def test_two_processes(pets, tmp_path, contents):
    source, expected = pets
    shard(source, tmp_path / "out", ShardOptions(**SMALL | {"workers": 2}, dedupe=True))
    assert contents(tmp_path / "out") == expected


def test_the_part_that_ends_last_merges_them_all(pets, tmp_path, contents):
    order = (3, 1, 4, 2)
    source, expected = pets
    out = tmp_path / "out"
    for number in order[:-1]:
        summary = shard(source, out, part(number))
        assert summary.part == f"{number}/4"
        assert summary.found == summary.kept + summary.set_aside
        assert not (out / "_info.json").exists()
    assert shard(source, out, part(order[-1])).part is None
    assert contents(out) == expected


def test_parts_at_the_same_time(pets, tmp_path, contents):
    source, expected = pets
    out = tmp_path / "out"
    with ThreadPoolExecutor(4) as threads:
        summaries = list(threads.map(lambda number: shard(source, out, part(number)), range(1, 5)))
    if all(summary.part is not None for summary in summaries):  # two that ended at once may each leave it to the other
        shard(source, out, ShardOptions(**SMALL, dedupe=True))
    assert contents(out) == expected


def test_a_run_without_part_takes_up_what_parts_have_left(pets, tmp_path, contents):
    source, expected = pets
    shard(source, tmp_path / "out", part(2))
    summary = shard(source, tmp_path / "out", ShardOptions(**SMALL, dedupe=True))
    assert summary.kept_shards > 0
    assert contents(tmp_path / "out") == expected


def test_more_parts_than_shards(pets, tmp_path):
    summary = shard(pets[0], tmp_path / "out", part(900, 1000))
    assert (summary.shards, summary.found) == (0, 0)


def test_a_part_and_a_whole_run_do_not_mix(pets, tmp_path):
    from coma.shards.write.resume import locked_run

    source, _ = pets
    shard(source, tmp_path / "out", part(1))
    record = json.loads((tmp_path / "out/.coma-shard/plan.json").read_text())
    with (
        locked_run(tmp_path / "out", record),
        pytest.raises(UsageError, match="another `coma shard` is writing"),
    ):
        shard(source, tmp_path / "out", part(2))


@pytest.mark.parametrize("text", ["3", "3/", "a/b", "-1/4", "1/4/5", ""])
def test_what_is_no_part(text):
    with pytest.raises(UsageError, match="write the third of sixteen as 3/16"):
        parse_part(text)


@pytest.mark.parametrize("text", ["0/4", "5/4", "0/0"])
def test_a_part_out_of_range(text):
    with pytest.raises(UsageError, match=f"--part {text}"):
        ShardOptions(part=parse_part(text))


RAY = """
import sys
from pathlib import Path
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard
options = ShardOptions(shard_bytes=20_000, val_fraction=0.25, dedupe=True, engine="ray", workers=2)
shard(Path(sys.argv[1]), Path(sys.argv[2]), options)
"""


@pytest.mark.slow
def test_a_ray_cluster_of_two_workers(pets, tmp_path, contents):
    source, expected = pets
    done = subprocess.run(
        [sys.executable, "-c", RAY, source, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == expected


def test_the_plan_says_what_is_then_written(pets, tmp_path):
    source, expected = pets
    plan = dry_run(source, tmp_path / "out", ShardOptions(**SMALL))
    assert not (tmp_path / "out").exists()
    assert (plan.found, plan.layout, plan.done_shards) == (27, "folder", 0)
    assert {split.name: split.classes for split in plan.splits} == {"train": 3, "val": 3}
    tars = {name: len(data) for name, data in expected.items() if name.endswith(".tar")}
    assert sum(split.shards for split in plan.splits) == len(tars)
    planned = sum(split.bytes for split in plan.splits)
    assert 0.5 * sum(tars.values()) < planned < 1.2 * sum(tars.values())
    shard(source, tmp_path / "out", part(1))
    assert dry_run(source, tmp_path / "out", ShardOptions(**SMALL, dedupe=True)).done_shards > 0


def test_a_small_source_still_makes_shards_for_many_processes(tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(40):  # no images: the plan does not look inside
        (tmp_path / f"many/{i}.jpg").write_bytes(bytes(900_000))
    (split,) = dry_run(tmp_path / "many", tmp_path / "out").splits
    assert split.shards == 16


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket on a real S3 server of this machine."""
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # of another server, in other tests
        s3fs.S3FileSystem().mkdir("pictures")
        yield "s3://pictures"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def fetched(url, into: Path) -> Path:
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).get(url, str(into), recursive=True)
    return into


def test_into_an_object_store(pets, bucket, tmp_path, contents):
    from coma.shards.manifest import read_manifest

    source, expected = pets
    out = folder_at(f"{bucket}/pets-shards")
    summary = shard(source, out, ShardOptions(**SMALL, dedupe=True))
    assert summary.found == 27
    assert contents(fetched(str(out), tmp_path / "got")) == expected
    assert len(read_manifest(f"{bucket}/pets-shards", "val")) + len(read_manifest(str(out))) == summary.kept
    assert not verify(out, decode=True).problems
    assert {split.split: split.samples for split in describe(out).splits} == {
        split.name: split.images for split in summary.splits
    }
    again = shard(source, out, ShardOptions(**SMALL, dedupe=True))
    assert again.kept_shards == summary.shards
    with pytest.raises(UsageError, match="it holds a data set of --seed 0, not 1"):
        shard(source, out, ShardOptions(**SMALL, dedupe=True, seed=1))


def test_a_stopped_run_goes_on_in_an_object_store(pets, bucket, tmp_path, contents):
    source, expected = pets
    out = folder_at(f"{bucket}/stopped")
    for number in (1, 2):
        assert shard(source, out, part(number, 3)).part == f"{number}/3"
    plan = dry_run(source, out, ShardOptions(**SMALL, dedupe=True))
    assert 0 < plan.done_shards < sum(split.shards for split in plan.splits)
    summary = shard(source, out, ShardOptions(**SMALL, dedupe=True))
    assert summary.kept_shards == plan.done_shards
    assert contents(fetched(str(out), tmp_path / "got")) == expected


def test_a_bucket_that_is_not_there_is_one_line(pets, bucket):
    from coma.errors import ComaError

    with pytest.raises(ComaError, match="nowhere-at-all") as caught:
        shard(pets[0], folder_at("s3://nowhere-at-all/x"), ShardOptions(**SMALL))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "abfs://bucket/x"])
def test_a_store_that_nothing_reads_names_the_way_out(url):
    with pytest.raises(UsageError, match=url.split(":")[0]) as caught:
        folder_at(url)
    assert "\n" not in str(caught.value)


def test_only_one_image_of_each_set_of_copies_is_kept(tmp_path, image):
    import pyarrow.parquet as pq

    source = tmp_path / "source"
    same = image(5)
    for path in ("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "val/a/9.jpg"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(same)
    for i, path in enumerate(("train/a/3.jpg", "train/b/3.jpg", "train/b/4.jpg", "val/b/1.jpg")):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(image(20 + i // 3))  # three of the first, one of the second
    summary = shard(source, tmp_path / "out", ShardOptions(workers=1, dedupe=True))
    assert summary.reasons == {"duplicate": 5}
    rows = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    of = {row["path"]: row["reason"].removeprefix("duplicate: the same bytes as ") for row in rows}
    assert of == {
        "train/a/1.jpg": "val/a/9.jpg",
        "train/a/2.jpg": "val/a/9.jpg",
        "train/b/1.jpg": "val/a/9.jpg",
        "train/b/3.jpg": "train/a/3.jpg",
        "train/b/4.jpg": "train/a/3.jpg",
    }
    assert list(islice(of, 1))
