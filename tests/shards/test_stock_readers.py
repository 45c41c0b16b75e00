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
from PIL import Image

from coma.shards.images import check_image
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


def variants(image) -> Iterator[tuple[str, bytes]]:
    """Images of every format and mode that the check lets pass, in every orientation where there is one."""
    picture = Image.open(io.BytesIO(image(3, form="PNG")))
    modes = {
        "JPEG": ("L", "RGB", "CMYK"),
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "WEBP": ("RGB", "RGBA"),
        "BMP": ("1", "L", "P", "RGB"),
        "TIFF": ("L", "P", "RGB", "RGBA", "CMYK", "I;16"),
        "PPM": ("L", "RGB"),
    }
    for form, of in modes.items():
        for mode in of:
            deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8)
            file = io.BytesIO()
            (deep if mode == "I;16" else picture.convert(mode)).save(file, form)
            yield f"{form} {mode}", file.getvalue()
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(2, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            yield f"{form} turned {orientation}", image(4, form=form, exif=exif)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"TIFF {compression}", image(5, form="TIFF", compression=compression)
    yield "progressive JPEG", image(6, progressive=True)
    yield "lossless WEBP", image(7, form="WEBP", lossless=True)


def test_dali_decodes_whatever_passes_the_check_at_the_size_recorded(image):
    from nvidia.dali import fn, pipeline_def

    cases = dict(variants(image))
    facts = {name: check_image(data) for name, data in cases.items()}
    batch = [np.frombuffer(data, np.uint8) for data in cases.values()]

    @pipeline_def(batch_size=len(batch), num_threads=1, device_id=None)
    def decode() -> object:
        return fn.decoders.image(fn.external_source(lambda: batch, batch=True))

    pipeline = decode()
    pipeline.build()
    (decoded,) = pipeline.run()
    sizes = {name: np.array(decoded[i]).shape for i, name in enumerate(cases)}
    assert sizes == {name: (fact.height, fact.width, 3) for name, fact in facts.items()}
