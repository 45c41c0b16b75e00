"""Shards that are damaged under a running stream: a substitute, a line, a count, or an end that says why."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from devices import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st

from coma.errors import ComaError, DataError
from coma.pipeline import Stream
from coma.pipeline.faults import candidates, default_budget
from coma.pipeline.order import SampleOrder
from coma.pipeline.reader import ShardReader, Unreadable
from coma.shards.manifest import Manifest, read_manifest

OPTIONS = {"image_size": 64, "unit_size": 16, "workers": 1, "seed": 4}


def flip_bytes(manifest: Manifest, sample: int, count: int = 40) -> None:
    """Damage the middle of one image inside its shard, size and all else unchanged."""
    path = manifest.folder / manifest.shards[int(manifest.shard_id[sample])]
    raw = bytearray(path.read_bytes())
    middle = int(manifest.offset[sample] + manifest.size[sample] // 2)
    for place in range(middle, middle + count):
        raw[place] ^= 0xFF
    path.write_bytes(raw)


def rewrite(manifest: Manifest, sample: int, kind: str) -> Manifest:
    """Put bytes into a shard that only the decoder can tell from an image: the manifest has their hash.

    Kinds: "header", no image at all; "scan", a JPEG of which little more than the header is left.
    """
    path = manifest.folder / manifest.shards[int(manifest.shard_id[sample])]
    raw = bytearray(path.read_bytes())
    start, size = int(manifest.offset[sample]), int(manifest.size[sample])
    if kind == "header":
        raw[start : start + size] = (b"no image at all " * size)[:size]
        path.write_bytes(raw)
    else:
        size = raw.index(b"\xff\xda", start) + 20 - start
        alter(manifest, "size", sample, size)
    return alter(manifest, "xxh3_64", sample, xxhash.xxh3_64_intdigest(bytes(raw[start : start + size])))


def alter(manifest: Manifest, name: str, sample: int, value: int) -> Manifest:
    table = pq.read_table(manifest.folder / "manifest.parquet")
    values = table.column(name).to_numpy().copy()
    values[sample] = value
    column = table.schema.get_field_index(name)
    table = table.set_column(column, table.schema.field(column), [values])
    pq.write_table(table, manifest.folder / "manifest.parquet")
    return read_manifest(manifest.folder)


REASONS = {
    "hash": "hash .* is not the manifest's",
    "header": "decoding failed: the header cannot be parsed",
    "scan": "decoding failed: Failed to decode sample",
    "size": "decoding failed: it is displayed .* pixels, not the manifest's 1000x1000",
}


def spoil(manifest: Manifest, sample: int, kind: str) -> Manifest:
    if kind == "hash":
        flip_bytes(manifest, sample)
        return manifest
    if kind == "size":
        manifest = alter(manifest, "width", sample, 1000)
        return alter(manifest, "height", sample, 1000)
    return rewrite(manifest, sample, kind)


def jpegs(manifest: Manifest) -> list[int]:
    formats = manifest.formats(range(len(manifest)))
    return [sample for sample, name in enumerate(formats) if name == "jpeg"]


def epoch_of(manifest: Manifest, ledger: Path | None = None, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and images of the first batches, a little more than an epoch."""
    with Stream(manifest, batch_size=8, ledger=ledger, **{**OPTIONS, "device": DEVICE, **options}) as stream:
        batches = [next(stream) for _ in range(len(manifest) // 8 + 1)]
    return torch.cat([batch.samples for batch in batches]), torch.cat([batch.images for batch in batches])


def differ(image: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two images are not one; a GPU decodes alone, by another engine, those whose batch has failed."""
    return not torch.equal(image, other) and (DEVICE == "cpu" or float((image - other).abs().mean()) > 0.05)


def lines(ledger: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in ledger.read_text().splitlines()]


@pytest.mark.gpu_too
@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_sample_is_replaced_written_down_and_the_rest_untouched(
    damaged: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = read_manifest(damaged)
    before, images_before = epoch_of(manifest)
    bad = jpegs(manifest)[3:20:14]
    for sample in bad:
        manifest = spoil(manifest, sample, kind)

    ledger = tmp_path / "ledger.jsonl"
    with caplog.at_level(logging.WARNING, "coma"):
        samples, images = epoch_of(manifest, ledger)
    assert torch.equal(samples, before)  # the ids asked for, as if nothing had happened
    changed = [int(sample) for sample, a, b in zip(samples, images, images_before, strict=True) if differ(a, b)]
    assert sorted(set(changed)) == bad

    written = lines(ledger)
    assert len(written) == len(changed) == len(caplog.records)
    for line in written:
        assert set(line) == {"step", "key", "shard", "reason", "substitute"}
        sample = manifest.keys(range(len(manifest))).index(str(line["key"]))
        assert sample in bad
        assert line["shard"] == manifest.shards[int(manifest.shard_id[sample])]
        start = 8 * (int(str(line["step"])) - 1)
        epoch = (start + samples[start : start + 8].tolist().index(sample)) // len(manifest)
        assert re.match(REASONS[kind], str(line["reason"]))
        substitute = manifest.keys(range(len(manifest))).index(str(line["substitute"]))
        assert substitute == next(c for c in candidates(manifest, 4, epoch, sample) if c not in bad)

    again = tmp_path / "again.jsonl"
    assert not any(map(differ, epoch_of(manifest, again)[1], images))
    assert lines(again) == written


@pytest.mark.parametrize("workers", [1, 3])
def test_all_kinds_at_once_in_one_large_batch(damaged: Path, tmp_path: Path, workers: int) -> None:
    """A sample's hash is wrong and its substitute cannot be decoded; neighbours have every other fault."""
    manifest = read_manifest(damaged)
    total, spoilt = len(manifest), jpegs(manifest)[::16]
    kinds = dict(zip(spoilt, ["hash", "header", "scan", "size", "scan"], strict=False))
    first_try = next(candidates(manifest, 4, 0, spoilt[0]))
    kinds.setdefault(first_try, "scan" if first_try in jpegs(manifest) else "header")
    for sample, kind in kinds.items():
        manifest = spoil(manifest, sample, kind)
    ledger = tmp_path / "ledger.jsonl"
    with Stream(manifest, batch_size=total, ledger=ledger, **{**OPTIONS, "workers": workers}) as stream:
        batch = next(stream)
    assert sorted(batch.samples.tolist()) == list(range(total))
    assert bool(batch.images.isfinite().all())
    reasons = {str(line["key"]): str(line["reason"]) for line in lines(ledger)}
    assert set(reasons) == set(manifest.keys(list(kinds)))
    for sample, kind in kinds.items():
        assert re.match(REASONS[kind], reasons[manifest.keys([sample])[0]])


def test_labels_are_those_of_the_image_shown(damaged: Path, tmp_path: Path) -> None:
    manifest = read_manifest(damaged)
    assert manifest.label is not None
    bad = next(
        sample
        for sample in range(len(manifest))
        if manifest.label[next(candidates(manifest, 4, 0, sample))] != manifest.label[sample]
    )
    flip_bytes(manifest, bad)
    with Stream(manifest, batch_size=len(manifest), **OPTIONS) as stream:
        batch = next(stream)
    assert batch.labels is not None
    shown = next(candidates(manifest, 4, 0, bad))
    assert int(batch.labels[batch.samples == bad]) == manifest.label[shown]


def test_only_the_rank_that_sees_a_bad_sample_writes_it_down(damaged: Path, tmp_path: Path) -> None:
    manifest = read_manifest(damaged)
    flip_bytes(manifest, 3)
    batch_size = len(manifest) // 2 * 2
    parts = SampleOrder(manifest, 4).global_batch(0, batch_size)[0].reshape(2, -1)
    assert 3 in parts
    for rank in range(2):
        ledger = tmp_path / f"{rank}.jsonl"
        options = {"batch_size": batch_size, "rank": rank, "world_size": 2, **OPTIONS}
        with Stream(manifest, ledger=ledger, **options) as stream:
            next(stream)
        assert ledger.exists() == (3 in parts[rank])
        assert not ledger.exists() or len(lines(ledger)) == 1


def test_past_the_budget_the_run_ends(damaged: Path, tmp_path: Path) -> None:
    manifest = read_manifest(damaged)
    for sample in (2, 9, 21):
        flip_bytes(manifest, sample)
    ledger = tmp_path / "ledger.jsonl"
    epoch_of(manifest, fault_budget=3)  # a sample that is bad in two epochs counts once
    with Stream(manifest, batch_size=8, ledger=ledger, fault_budget=2, **OPTIONS) as stream:
        for _ in range(2):
            with pytest.raises(DataError, match=r"^3 different .* fault_budget=2; .*coma verify") as caught:
                deque(stream, maxlen=0)
            assert "\n" not in str(caught.value)
            assert caught.value.exit_code == 3
        assert stream.consumed < len(manifest)
    assert len({line["key"] for line in lines(ledger)}) == 3


def test_the_default_budget() -> None:
    assert default_budget(100) == 10
    assert default_budget(1_281_167) == 1281


@pytest.mark.parametrize("damage", ["vanished", "truncated"])
def test_a_lost_shard_ends_the_run_with_its_name(damaged: Path, damage: str) -> None:
    """Lost after the manifest was read: `read_manifest` itself refuses it before."""
    manifest = read_manifest(damaged)
    path = manifest.folder / manifest.shards[2]
    if damage == "vanished":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    with Stream(manifest, batch_size=8, **OPTIONS) as stream:
        with pytest.raises(DataError, match=manifest.shards[2]) as caught:
            deque(stream, maxlen=0)
        assert caught.value.exit_code == 3
    with pytest.raises(DataError, match=manifest.shards[2]):
        Stream(damaged, batch_size=8, **OPTIONS)


def test_batches_before_a_failure_come_out_first(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    with Stream(manifest, batch_size=8, **OPTIONS) as stream:
        lost = int(manifest.shard_id[stream.plan(5).samples[0]])
        steps = [set(manifest.shard_id[stream.plan(number).samples].tolist()) for number in range(1, 6)]
        good = next(number for number, shards in enumerate(steps) if lost in shards)
        (manifest.folder / manifest.shards[lost]).unlink()
        for _ in range(good):
            next(stream)
        with pytest.raises(DataError, match=manifest.shards[lost]):
            next(stream)


def test_when_nothing_has_a_header_the_reason_is_given(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    for sample in range(len(manifest)):
        manifest = rewrite(manifest, sample, "header")
    reason = "header cannot be parsed.*; none of the samples tried in its place is good"
    with Stream(manifest, batch_size=4, **OPTIONS) as stream, pytest.raises(DataError, match=reason):
        next(stream)


def test_when_nothing_can_be_decoded_the_reason_is_given(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    good = jpegs(manifest)
    for sample in range(len(manifest)):
        manifest = rewrite(manifest, sample, "scan" if sample in good else "header")
    reason = "decoding failed: Failed to decode.*; none of the samples tried in its place is good"
    with Stream(manifest, batch_size=4, **OPTIONS) as stream:
        stream.load_state_dict({**stream.state_dict(), "samples": 4 * (all_jpegs(stream, good) - 1)})
        with pytest.raises(DataError, match=reason):
            next(stream)


def all_jpegs(stream: Stream, good: list[int]) -> int:
    """The first step that has nothing but JPEGs."""
    return next(n for n in range(1, 20) if set(good).issuperset(stream.plan(n).samples.tolist()))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_rank_whose_whole_part_cannot_be_decoded_goes_on_as_one_process_does(
    damaged: Path, tmp_path: Path, world_size: int
) -> None:
    manifest = read_manifest(damaged)
    with Stream(manifest, batch_size=4, **OPTIONS) as stream:
        step = all_jpegs(stream, jpegs(manifest))
        asked = stream.plan(step).samples.tolist()
    for sample in asked:
        manifest = rewrite(manifest, sample, "scan")
    shown = [next(c for c in candidates(manifest, 4, 0, sample) if c not in asked) for sample in asked]
    for rank in range(world_size):
        sharing = {"rank": rank, "world_size": world_size, "start_samples": 4 * (step - 1)}
        with Stream(manifest, batch_size=4, ledger=tmp_path / "ledger.jsonl", **sharing, **OPTIONS) as stream:
            assert next(stream).samples.tolist() == asked[4 // world_size * rank :][: 4 // world_size]
    assert [line["key"] for line in lines(tmp_path / "ledger.jsonl")] == manifest.keys(asked)
    assert [line["substitute"] for line in lines(tmp_path / "ledger.jsonl")] == manifest.keys(shown)


def test_the_reader_checks_every_byte_and_keeps_few_files_open(manifest: Manifest) -> None:
    reader = ShardReader(manifest, open_files=2)
    rng = np.random.default_rng(0)
    asked = rng.permutation(len(manifest))
    for sample, data in zip(asked, reader.read(asked), strict=True):
        assert not isinstance(data, Unreadable)
        assert len(data) == manifest.size[sample]
        assert xxhash.xxh3_64_intdigest(data) == manifest.xxh3_64[sample]
        assert len(reader._files) <= 2
    reader.close()
    assert not reader._files


FULL_DISK = """
set -e
mkdir "$1"
mount -t tmpfs -o size=4k none "$1"
head -c 4096 /dev/zero > "$1/ledger.jsonl" || true
exec "$PYTHON" -c "$RUN" "$2" "$1/ledger.jsonl"
"""
RUN = """
import sys
from pathlib import Path
from coma.errors import ComaError
from coma.pipeline import Stream
try:
    with Stream(sys.argv[1], batch_size=8, image_size=64, unit_size=16, workers=1, ledger=Path(sys.argv[2])) as stream:
        for _ in range(100):
            next(stream)
except ComaError as error:
    print(type(error).__name__, error)
"""


def test_a_ledger_on_a_full_disk_ends_the_run_in_one_line(damaged: Path, tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    flip_bytes(read_manifest(damaged), 3)
    disk = tmp_path / "disk"
    done = subprocess.run(
        [*unshare, "sh", "-c", FULL_DISK, "sh", str(disk), str(damaged)],
        env={**os.environ, "PYTHON": sys.executable, "RUN": RUN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"ComaError ledger {disk}/ledger.jsonl cannot be written \(No space left on device\); "
        "give it more room or another place, then start again\n",
        done.stdout,
    )


@pytest.mark.parametrize("place", ["a-file/ledger.jsonl", "a-folder"])
def test_a_ledger_that_cannot_be_one_ends_the_run_in_one_line(damaged: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    manifest = read_manifest(damaged)
    flip_bytes(manifest, 3)
    with pytest.raises(ComaError, match=rf"^ledger {tmp_path / place} cannot be written \(.*\); "):
        epoch_of(manifest, tmp_path / place)


@settings(max_examples=12)
@given(
    kinds=st.dictionaries(st.integers(0, 84), st.sampled_from(list(REASONS)), max_size=9),
    rank_batch_size=st.integers(1, 6),
    workers=st.integers(1, 3),
    prefetch=st.integers(1, 4),
)
def test_ranks_workers_and_prefetch_do_not_change_what_is_substituted(
    data: Path, kinds: dict[int, str], rank_batch_size: int, workers: int, prefetch: int
) -> None:
    """Whatever is found first: by its hash, by its header, or in the middle of a batch by the decoder."""
    with tempfile.TemporaryDirectory() as name:
        manifest = read_manifest(Path(shutil.copytree(data, Path(name) / "shards")))
        good = jpegs(manifest)
        for sample, kind in kinds.items():
            if sample in good or kind in ("hash", "header"):
                manifest = spoil(manifest, sample, kind)

        def run(world_size: int, workers: int, prefetch: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
            """Samples and images of an epoch, joined, and the lines of all ledgers in order."""
            options = {
                "batch_size": 4 * rank_batch_size,
                "world_size": world_size,
                "fault_budget": 99,
                **OPTIONS,
            }
            options |= {"workers": workers, "prefetch": prefetch}
            ledgers = [Path(name) / f"{world_size}-{workers}-{prefetch}-{rank}" for rank in range(world_size)]
            with ExitStack() as stack:
                streams = [
                    stack.enter_context(Stream(manifest, rank=rank, ledger=ledger, **options))
                    for rank, ledger in enumerate(ledgers)
                ]
                steps = range(len(manifest) // (4 * rank_batch_size) + 1)
                parts = [next(stream) for _ in steps for stream in streams]
            written = [line for ledger in ledgers if ledger.exists() for line in ledger.read_text().splitlines()]
            return (
                torch.cat([part.samples for part in parts]),
                torch.cat([part.images for part in parts]),
                sorted(written),
            )

        alone = run(1, 1, 2)
        assert {json.loads(line)["key"] for line in alone[2]} >= set(
            manifest.keys([s for s, kind in kinds.items() if s in good or kind in ("hash", "header")])
        )
        for world_size in (2, 4):
            together = run(world_size, workers, prefetch)
            assert torch.equal(together[0], alone[0])
            assert torch.equal(together[1], alone[1])
            assert together[2] == alone[2]


def test_damaged_samples_may_be_left_to_the_caller(damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong hash, no image at all, and a scan without end: each named in its batch, with nothing in their place."""
    manifest = read_manifest(damaged)
    with Stream(manifest, batch_size=8, training=False, **OPTIONS) as stream:
        whole = torch.cat([batch.images.clone() for batch in stream])
    flip_bytes(manifest, 1)
    manifest = rewrite(rewrite(manifest, 4, "header"), 9, "scan")
    with Stream(manifest, batch_size=8, training=False, mark_damaged=True, fault_budget=0, **OPTIONS) as stream:
        batches = [(batch.images.clone(), batch.samples.tolist(), dict(batch.damaged)) for batch in stream]
    reasons = {sample: reason for _, _, of_batch in batches for sample, reason in of_batch.items()}
    assert reasons.keys() == {1, 4, 9}
    assert reasons[1].startswith("hash ")
    assert reasons[4].startswith("decoding failed: the header")
    assert reasons[9].startswith("decoding failed")
    assert [list(of_batch) for _, _, of_batch in batches[:2]] == [[1, 4], [9]]
    assert [sample for _, samples, _ in batches for sample in samples] == list(range(len(manifest)))
    good = [sample for sample in range(len(manifest)) if sample not in reasons]
    assert torch.equal(torch.cat([images for images, _, _ in batches])[good], whole[good])
    assert "showing" not in caplog.text
