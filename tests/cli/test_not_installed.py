"""A checkout on the PYTHONPATH, without metadata of coma; and an environment without DALI."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import SMALL
from drawn import draw_images
from environments import Environment, without_coma

import coma.installed.versions
from coma.installed.cuda import cuda_packages
from coma.installed.versions import coma_requirements, coma_version


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("drawn") / "photos", 8)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return without_coma(tmp_path_factory.mktemp("checkout"))


@pytest.mark.slow
def test_every_command_works_in_a_checkout_without_metadata(checkout: Environment, photos: Path, tmp_path) -> None:
    def command(*words: object) -> str:
        done = checkout.coma(*words, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    assert command("--version") == f"coma {coma_version()}\n"
    command("shard", photos, "shards", "--workers", "1")
    info = json.loads((tmp_path / "shards" / "_info.json").read_text())
    assert info["coma"]["version"] == coma_version()
    command("pretrain", "shards", "--out", "run", *SMALL, "--steps", "1")
    versions = json.loads((tmp_path / "run" / "config.json").read_text())["versions"]
    assert versions["coma"] == coma_version()
    assert versions["torch"].startswith(version("torch"))
    command("export", "run", "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["coma"]["version"] == coma_version()


@pytest.mark.slow
def test_the_doctor_reads_what_is_required_from_the_checkout(checkout: Environment, tmp_path) -> None:
    done = checkout.coma("doctor", "--json", cwd=tmp_path)
    found = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert found["versions"]["status"] == "ok", found["versions"]
    assert f"torch {version('torch')}" in found["versions"]["text"]
    assert found["CUDA"]["status"] == "ok", found["CUDA"]


def test_without_dali_one_line_says_what_to_install(photos: Path, tmp_path) -> None:
    gone = ["nvidia/dali", "nvidia/nvimgcodec", *(name.replace("-", "_") for name in cuda_packages())]
    (dali,) = (name for name in cuda_packages() if name.startswith("nvidia-dali-"))
    environment = without_coma(tmp_path, leave_out=gone)
    for works in (
        ["--help"],
        ["shard", photos, "shards", "--workers", "1"],
        ["inspect", "shards"],
        ["verify", "shards"],
    ):
        done = environment.coma(*works, cwd=tmp_path)
        assert done.returncode == 0, (works, done.stderr)
    for needs_it in (["pretrain", "shards", "--out", "run", *SMALL], ["demo", "--out", "run"]):
        done = environment.coma(*needs_it, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"error: DALI is missing: pip install {dali}"
        assert not (tmp_path / "run").exists()


def test_the_checkout_says_what_its_metadata_say(monkeypatch) -> None:
    """As pip would install it: the same distributions, versions and extras."""
    from packaging.requirements import Requirement

    of_file = {str(Requirement(line)) for line in coma_requirements() or []}
    version_of_file = coma_version()
    monkeypatch.setattr(coma.installed.versions, "_PYPROJECT", Path("/nowhere/pyproject.toml"))
    coma.installed.versions._checkout.cache_clear()
    try:
        assert coma_version() == version_of_file
        assert {str(Requirement(line)) for line in coma_requirements() or []} == of_file
    finally:
        coma.installed.versions._checkout.cache_clear()


def test_neither_installed_nor_a_checkout_is_said(tmp_path, monkeypatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from coma.doctor.software import versions

    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\nversion = "7"\n')
    monkeypatch.setattr(coma.installed.versions, "_PYPROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(coma.installed.versions, "version", nothing)
    monkeypatch.setattr(coma.installed.versions, "requires", nothing)
    coma.installed.versions._checkout.cache_clear()
    try:
        assert coma_version() == "unknown"
        assert coma_requirements() is None
        finding = versions()
        assert finding.status == "warning"
        assert "not checked" in finding.text
    finally:
        coma.installed.versions._checkout.cache_clear()
