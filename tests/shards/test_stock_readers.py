"""Ordinary shards: webdataset, timm, DALI and `datasets` read them with their own readers: same count, same bytes."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from drawn import shard_images
from PIL import Image

from coma.shards.describe.card import data_card
from coma.shards.images.prepare import check_image
from coma.shards.manifest import read_manifest

FORMATS = "jpg;png;webp"  # in the shards below


@pytest.fixture(scope="module")
def made(tmp_path_factory, tree, image):
    """18 JPEGs, and two images whose names do not say what they are."""
    folder = tmp_path_factory.mktemp("made")
    source = tree(folder / "pets")
    for name, form in (("cat/x.jpg", "PNG"), ("dog/y.png", "WEBP")):
        (source / name).write_bytes(image(77, form=form))
    shard_images(source, folder / "out", shard_bytes=20_000)
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
            writer.write({name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")})
        writer.close()
        assert file.getvalue() == path.read_bytes()


def test_timm(made, expected):
    from timm.data import create_dataset

    _, out = made
    dataset = create_dataset("wds/", root=str(out), split="train", batch_size=1)
    assert len(dataset) == 20
    got = list(dataset)
    assert [label for _, label in got] == read_manifest(out).label.tolist()
    for (picture, _), (data, _) in zip(got, expected.values(), strict=True):
        assert picture.tobytes() == Image.open(io.BytesIO(data)).convert(picture.mode).tobytes()


READ_WITH_DATASETS = """
import hashlib, json, sys
from datasets import Image, load_dataset

for asked in json.loads(sys.argv[1]):
    data = load_dataset(*asked["arguments"], **asked["options"])["train"]
    names = getattr(data.features["cls"], "names", None)
    formats = [name for name, kind in data.features.items() if isinstance(kind, Image)]
    for name in formats:
        data = data.cast_column(name, Image(decode=False))
    found = []
    for sample in data:
        image = next(sample[name] for name in formats if sample[name] is not None)["bytes"]
        found.append([sample["__key__"], hashlib.sha256(image).hexdigest(), sample["cls"]])
    print(json.dumps([found, names]))
"""


def test_datasets(made, expected, tmp_path, tree):
    """In a process of its own, where the Hub is out of reach."""
    _, mixed = made
    shard_images(tree(tmp_path / "pets", 4), tmp_path / "plain", shard_bytes=20_000)
    for out in (mixed, tmp_path / "plain"):
        (out / "README.md").write_text(data_card(out))
    tars = {"train": str(tmp_path / "plain/train/*.tar")}
    ways = [
        {"arguments": [str(mixed)], "options": {}},  # as its card says
        {"arguments": [str(mixed)], "options": {"streaming": True}},
        {"arguments": ["webdataset"], "options": {"data_files": tars}},
        {"arguments": ["webdataset"], "options": {"data_files": tars, "streaming": True}},
    ]
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_DATASETS, json.dumps(ways)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[[")]
    manifest = pq.read_table(tmp_path / "plain/train/manifest.parquet").to_pylist()
    plain = [
        [
            row["key"],
            hashlib.sha256((tmp_path / "pets" / row["source"]).read_bytes()).hexdigest(),
            row["label"],
        ]
        for row in manifest
    ]
    whole = [[key, hashlib.sha256(data).hexdigest(), label] for key, (data, label) in expected.items()]
    classes = ["cat", "dog", "emu"]
    assert results == [[whole, classes], [whole, classes], [plain, None], [plain, None]]


def test_the_lines_of_the_data_card_run(made, expected, monkeypatch):
    _, out = made
    monkeypatch.chdir(out)
    code = data_card(out).split("```python\n")[1].split("```")[0]
    read: dict[str, Any] = {}
    exec(code, read)
    with read["stream"] as stream:
        assert next(iter(stream)).images.shape == (8, 3, 224, 224)
    assert sorted(label for _, label in read["samples"]) == sorted(label for _, label in expected.values())
    assert len(read["dataset"]) == 20


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
                ext=[FORMATS, "cls"],
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
