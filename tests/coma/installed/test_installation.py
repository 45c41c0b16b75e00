"""Commands of an installation fit how it was made, and another distribution that brings a module `coma` is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from wheels import build_wheel, install_wheel, uninstall, write_wheel

import coma.installed.versions
from coma.doctor.software import installed_files
from coma.installed.installation import Installation, changed_files, installation, namesake

ROOT = Path(__file__).parents[3]
CLONE = Installation((".uv/bin/uv", "pip"), checkout=Path("/src/coma"), synced=True, origin="file:///src/coma")
EDITABLE = Installation(("pip",), checkout=Path("/src/my coma"))
WHEEL = Installation(("pip",))
UV_WHEEL = Installation(("uv", "pip"), origin="file:///d/coma_vision-0.1.0-py3-none-any.whl")
AT_CLONE = "cd /src/coma && "


@pytest.mark.parametrize(
    ("command", "clone", "editable", "wheel", "uv_wheel"),
    [
        (
            lambda here: here.extra("s3"),
            ".uv/bin/uv sync --inexact --extra s3",
            "pip install -e '/src/my coma[s3]'",
            "pip install 'coma-vision[s3]'",
            "uv pip install 'coma-vision[s3]'",
        ),
        (
            lambda here: here.install("aiohttp"),
            ".uv/bin/uv pip install aiohttp",
            "pip install aiohttp",
            "pip install aiohttp",
            "uv pip install aiohttp",
        ),
        (
            lambda here: here.group("cuda12", "nvidia-dali-cuda120"),
            ".uv/bin/uv sync --inexact --group cuda12",
            "pip install nvidia-dali-cuda120",
            "pip install nvidia-dali-cuda120",
            "uv pip install nvidia-dali-cuda120",
        ),
        (
            lambda here: here.restore("torch>=99"),
            ".uv/bin/uv sync --inexact",
            "pip install 'torch>=99'",
            "pip install 'torch>=99'",
            "uv pip install 'torch>=99'",
        ),
        (
            lambda here: here.replace(["b"], "a<2"),
            ".uv/bin/uv pip uninstall b && .uv/bin/uv pip install 'a<2'",
            "pip uninstall -y b && pip install 'a<2'",
            "pip uninstall -y b && pip install 'a<2'",
            "uv pip uninstall b && uv pip install 'a<2'",
        ),
        (
            lambda here: here.reinstall("coma"),
            ".uv/bin/uv pip uninstall coma && .uv/bin/uv sync --inexact --reinstall-package coma-vision",
            "pip uninstall -y coma && pip install --no-deps -e '/src/my coma'",
            "pip uninstall -y coma coma-vision && pip install --no-deps coma-vision",
            "uv pip uninstall coma coma-vision && "
            "uv pip install --no-deps file:///d/coma_vision-0.1.0-py3-none-any.whl",
        ),
    ],
)
def test_each_command_fits_the_installation(command, clone, editable, wheel, uv_wheel) -> None:
    assert command(CLONE) == AT_CLONE + clone
    assert [command(each) for each in (EDITABLE, WHEEL, UV_WHEEL)] == [editable, wheel, uv_wheel]


def test_in_its_own_folder_a_clone_needs_no_cd(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    here = Installation(("uv", "pip"), checkout=Path.cwd(), synced=True)
    assert here.extra("onnx") == "uv sync --inexact --extra onnx"


def stranger(folder: Path) -> Path:
    """Write a wheel like the one of that name on the index: a package `coma`, without our modules."""
    return write_wheel(folder, "coma", "3.0.1", {"coma/__init__.py": '"""Another."""\n', "coma/config/base.py": ""})


def new_environment(folder: Path) -> Path:
    """Make an environment that sees the libraries of this one, and no coma; return its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"))


LOOK = """
import json
from dataclasses import asdict
from coma.doctor.software import installed_files
from coma.installed.installation import installation
print(json.dumps([asdict(installed_files()), installation().extra("s3")]))
"""


def found_in(python: Path, folder: Path) -> tuple[dict[str, str], str]:
    """Return what the doctor finds in an environment, and the command for an extra there."""
    done = subprocess.run(
        [python, "-c", LOOK], cwd=folder, capture_output=True, text=True, timeout=60, check=True, env={}
    )
    finding, command = json.loads(done.stdout)
    return finding, command


def test_the_doctor_names_the_stranger_over_a_wheel_beside_it_and_what_it_leaves(wheel: Path, tmp_path) -> None:
    python = new_environment(tmp_path / "venv")
    install_wheel(wheel, "--python", python)
    finding, command = found_in(python, tmp_path)
    assert finding == {"status": "ok", "text": f"coma-vision {coma.installed.versions.coma_version()}", "advice": ""}
    assert command == "uv pip install 'coma-vision[s3]'"

    install_wheel(stranger(tmp_path), "--python", python)
    finding, _ = found_in(python, tmp_path)
    assert finding["status"] == "problem"
    assert finding["text"] == (
        "coma 3.0.1 is an unrelated distribution whose module is `coma` too; "
        "changed since the installation: coma/__init__.py"
    )
    again = f"uv pip install --no-deps {wheel.as_uri()}"
    assert finding["advice"] == f"uv pip uninstall coma coma-vision && {again}"

    uninstall("coma", python)
    finding, _ = found_in(python, tmp_path)  # the stranger took our file along
    assert finding["text"] == "changed since the installation: coma/__init__.py"
    assert finding["advice"] == f"uv pip uninstall coma-vision && {again}"

    uninstall("coma-vision", python)
    install_wheel(wheel, "--python", python)
    assert found_in(python, tmp_path)[0]["status"] == "ok"


def test_the_command_says_that_another_package_hides_it(tmp_path) -> None:
    """As in a clone, whose packages are found after those of the environment."""
    python = new_environment(tmp_path / "venv")
    install_wheel(stranger(tmp_path), "--python", python)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "checkout.pth").write_text(f"{ROOT}\n")
    code = "from coma_vision import run; run()"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: `import coma` finds {site / 'coma'}, which is not coma-vision's: uninstall")


def test_a_checkout_beside_the_stranger_is_told(tmp_path, monkeypatch) -> None:
    install_wheel(stranger(tmp_path), "--target", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    other = namesake()
    assert other is not None
    assert (other.name, other.version) == ("coma", "3.0.1")
    finding = installed_files()
    assert finding.status == "problem"
    assert "coma 3.0.1 is an unrelated distribution" in finding.text
    assert "uninstall" in finding.advice
    assert changed_files() == []


def test_metadata_of_an_earlier_build_are_no_stranger(tmp_path, monkeypatch) -> None:
    """This project was called coma itself: its clones may have a coma.egg-info, which lists our files."""
    (tmp_path / "coma.egg-info").mkdir()
    (tmp_path / "coma.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: coma\nVersion: 0.1.0\n")
    (tmp_path / "coma.egg-info" / "SOURCES.txt").write_text("coma/__init__.py\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert namesake() is None


def test_what_is_installed_here_is_told() -> None:
    here = installation()
    assert here.checkout == ROOT
    assert "[s3]" in here.extra("s3") or here.extra("s3").endswith("sync --inexact --extra s3")
    assert installed_files().status == "ok"


TEXTS = {".md", ".py", ".toml", ".sh", ".yml", ".yaml", ".cff", ".cfg", ".txt", ".ipynb", ""}
AMONG = re.compile(r"""(?:^|[\s'"`=])coma(?:\\*\[[\w,]+\])?(?:[=<>!~]=?[\w.]+)?(?=$|[\s'"`,;)])""")


def advises_the_stranger(line: str) -> bool:
    """Whether a line has the words of an installer before a requirement of the distribution coma."""
    begin = re.search(r"\b(?:pip3?|uv pip|uv tool|pipx|uv)\b[^`;&|]*?\b(?:install|add|run --with)\b([^`;&|]*)", line)
    return begin is not None and AMONG.search(begin[1]) is not None


@pytest.mark.parametrize(
    "line",
    [
        "pip install coma",
        "`pip install 'coma[s3]'`",
        "pip install --force-reinstall coma",
        "uv tool install coma",
        "uv add coma==3",
        'f"pip install coma\\\\[onnx]"',
    ],
)
def test_the_search_for_advice_finds_it(line: str) -> None:
    assert advises_the_stranger(line)
    assert not advises_the_stranger(line.replace("coma", "coma-vision"))


def test_no_text_advises_to_install_the_stranger() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [ROOT / name for name in listed if Path(name).suffix in TEXTS and (ROOT / name).is_file()]
    assert len(files) > 300
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        if file != Path(__file__)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if advises_the_stranger(line)
    ]
    assert found == []
