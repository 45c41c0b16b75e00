"""Stores other than S3: Google's, an emulator of it on this machine, and the Hub's, as far as its calls go."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub import REPOSITORY, Hub
from servers import Server, serving

from coma.errors import DataError
from coma.installed.installation import installation
from coma.pipeline import Stream
from coma.pipeline.cache import ShardCache
from coma.pipeline.download import RetryPolicy
from coma.pipeline.reader import ShardReader, Unreadable
from coma.shards.files import folder_at
from coma.shards.manifest import Manifest, read_manifest

HASTY = RetryPolicy(stall_s=2.0, total_s=5.0, first_pause_s=0.01)
OPTIONS = {"batch_size": 8, "image_size": 64, "unit_size": 16, "workers": 1, "seed": 4}
Store = tuple[Server, str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def google(data: Path) -> Iterator[Store]:
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks by gRPC, which the emulator does not know
        import gcsfs

        emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket="photos")
        emulator.start()
        address = f"http://127.0.0.1:{emulator._api._httpd.server_port}"
        with serving(address) as proxy:
            patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            direct = gcsfs.GCSFileSystem(endpoint_url=address, token="anon", skip_instance_cache=True)
            direct.put(str(data), "photos/shards", recursive=True)
            yield proxy, "gs://photos/shards"
        emulator.stop()


@pytest.fixture(scope="module")
def hub(data: Path) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch, serving(data, handler=Hub) as server:
        from huggingface_hub import constants

        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # as HF_ENDPOINT would before
        patch.setattr(constants, "ENDPOINT", server.url)  # the import, which timm makes
        yield server, f"hf://datasets/{REPOSITORY}"


@pytest.fixture(params=["google", "hub"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    server, url = request.getfixturevalue(request.param)
    server.downloads.clear()
    yield server, url
    server.always = None


def epoch_of(data: Path | str) -> tuple[torch.Tensor, torch.Tensor]:
    with Stream(data, **OPTIONS) as stream:
        batches = [next(stream) for _ in range(stream.samples_per_epoch // 8 + 1)]
    return torch.cat([batch.samples for batch in batches]), torch.cat([batch.images for batch in batches])


def test_an_epoch_is_the_local_one(store: Store, data: Path, manifest: Manifest) -> None:
    server, url = store
    samples, images = epoch_of(url)
    expected, local = epoch_of(data)
    assert torch.equal(samples, expected)
    assert torch.equal(images, local)
    assert server.downloads == dict.fromkeys(manifest.shards, 1)


def test_trouble_that_passes_costs_nothing(store: Store, manifest: Manifest) -> None:
    server, url = store
    remote = read_manifest(folder_at(url))
    server.faults.extend(["500", "cut", "well", "stall", "well", "cut"])
    reader = ShardReader(remote, cache=ShardCache(remote, retry=HASTY))
    found, expected = (r.read(range(len(manifest))) for r in (reader, ShardReader(manifest)))
    assert not server.faults
    assert not any(isinstance(item, Unreadable) for item in found)
    assert [bytes(item) for item in found] == [bytes(item) for item in expected]


@pytest.mark.parametrize("trouble", ["500", "stall", "trickle"])
def test_trouble_that_stays_is_named(store: Store, trouble: str, cache: Path) -> None:
    server, url = store
    remote = read_manifest(folder_at(url))
    server.always = trouble
    reason = "no good answer" if trouble == "500" else r"(less than \d+ bytes came|no good answer)"
    with pytest.raises(DataError, match=f"{url}/train/{remote.shards[0]} cannot be downloaded .*{reason}") as caught:
        ShardReader(remote, cache=ShardCache(remote, retry=HASTY)).read([0])
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_a_missing_shard_is_named(store: Store, manifest: Manifest, data: Path) -> None:
    _, url = store
    remote = read_manifest(folder_at(url))
    gone = Manifest(**{**vars(remote), "shards": ("gone.tar", *remote.shards[1:])})
    with pytest.raises(DataError, match=rf"{url}/train/gone.tar cannot be downloaded \(1 try\): no such file"):
        ShardCache(gone, retry=HASTY).open(0)


WITHOUT = """
import sys
for name in ("gcsfs", "s3fs", "huggingface_hub", "aiohttp"):
    sys.modules[name] = None  # cannot be imported
from coma.errors import UsageError
from coma.shards.files import folder_at
for url in sys.argv[1:]:
    try:
        folder_at(url)
    except UsageError as error:
        print(error)
"""


def test_a_package_that_is_not_there_is_named() -> None:
    here = installation()
    ways_out = {
        "gs://photos/shards": here.extra("gcs"),
        "gcs://photos/shards": here.extra("gcs"),
        "s3://photos/shards": here.extra("s3"),
        "hf://datasets/someone/photos": here.install("huggingface_hub"),
        "http://127.0.0.1:1/shards": here.install("aiohttp"),
    }
    done = subprocess.run([sys.executable, "-c", WITHOUT, *ways_out], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{url}: reading {url.split('://')[0]}:// needs another package: {way_out}" for url, way_out in ways_out.items()
    ]
