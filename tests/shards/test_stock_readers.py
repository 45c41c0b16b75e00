"""Ordinary shards: webdataset, timm and DALI read them with their own readers: same count, same bytes."""

import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest

from coma.shards.manifest import read_manifest
from coma.shards.writer import ShardOptions, shard


@pytest.fixture(scope="module")
def made(tmp_path_factory, tree, image):
    folder = tmp_path_factory.mktemp("made")
    source = tree(folder / "pets")
    for name, form in (("cat/x.png", "PNG"), ("dog/y.webp", "WEBP")):
        (source / name).write_bytes(image(77, form=form))
    shard(source, folder / "out", ShardOptions(shard_bytes=20_000, workers=1))
    return source, folder / "out"


@pytest.fixture(scope="module")
def expected(made) -> dict[str, tuple[bytes, int]]:
    source, out = made
    rows = pq.read_table(out / "train/manifest.parquet").to_pylist()
    return {row["key"]: ((source / row["source"]).read_bytes(), row["label"]) for row in rows}


def test_webdataset(made, expected):
    import webdataset

    _, out = made
    urls = sorted(map(str, (out / "train").glob("*.tar")))
    got = {
        sample["__key__"]: (sample.get("jpg") or sample.get("png") or sample["webp"], int(sample["cls"]))
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    }
    assert got == expected


def test_tars_are_what_webdataset_would_have_written(made):
    import webdataset

    _, out = made
    for path in (out / "train").glob("*.tar"):
        file = io.BytesIO()
        writer = webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False)
        for sample in webdataset.WebDataset([str(path)], shardshuffle=False):
            writer.write(
                {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
            )
        writer.close()
        assert file.getvalue() == path.read_bytes()


def test_timm(made):
    from timm.data import create_dataset

    _, out = made
    dataset = create_dataset("wds/", root=str(out), split="train", batch_size=1)
    assert len(dataset) == 20
    labels = [label for _, label in dataset]
    assert labels == read_manifest(out).label.tolist()


def test_dali(made, expected):
    from nvidia.dali import fn, pipeline_def

    _, out = made
    tars = sorted(map(str, (out / "train").glob("*.tar")))

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def stock() -> object:
        return tuple(
            fn.readers.webdataset(
                paths=tars,
                index_paths=[path.replace(".tar", ".idx") for path in tars],
                ext=["jpg;png;webp", "cls"],
                missing_component_behavior="error",
                name="reader",
            )
        )

    pipeline = stock()
    pipeline.build()
    count = pipeline.reader_meta("reader")["epoch_size"]
    assert count == len(expected) == 20

    def read() -> Iterator[tuple[bytes, int]]:
        for _ in range(-(-count // 4)):
            images, labels = pipeline.run()
            for i in range(len(images)):
                yield np.array(images[i]).tobytes(), int(np.array(labels[i]).tobytes())

    got = list(read())[:count]
    assert got == [expected[key] for key in sorted(expected)]


def test_the_index_is_what_dali_s_own_tool_writes(made, tmp_path):
    _, out = made
    for tar in (out / "train").glob("*.tar"):
        subprocess.run(
            [sys.executable, "-m", "wds2idx", str(tar), str(tmp_path / "x.idx")],
            check=True,
            capture_output=True,
        )
        assert (tmp_path / "x.idx").read_text() == tar.with_suffix(".idx").read_text()


def test_tars_are_plain_ustar_with_short_dotless_keys(made):
    _, out = made
    for path in (out / "train").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert re.fullmatch(r"\d{9}\.(jpg|png|webp|cls|json)", member.name)
                assert not member.pax_headers
        assert path.read_bytes()[257:263] == b"ustar\0"
