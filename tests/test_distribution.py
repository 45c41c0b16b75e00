"""What strangers see of the distribution: metadata, the README on an index page, the citation, the container."""

from __future__ import annotations

import ast
import email
import inspect
import json
import re
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest
import yaml
from wheels import build_wheel

import coma

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    """METADATA of the wheel; its payload is what an index page shows."""
    with zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("dist"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        (scripts,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
        assert "coma = coma_vision:run" in wheel.read(scripts).decode()
        assert "coma_vision.py" in wheel.namelist()
        return email.message_from_bytes(wheel.read(name))


def test_an_index_page_shows_the_readme_with_links_and_pictures_that_lead_somewhere(metadata: Message) -> None:
    page, readme = str(metadata.get_payload()), (ROOT / "README.md").read_text()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert page.splitlines()[0] == readme.splitlines()[0]
    shown, written = LINK.findall(page), LINK.findall(readme)
    assert len(shown) == len(written) > 10
    for link, before in zip(shown, written, strict=True):
        if "://" in before:
            assert link == before
            continue
        kind, _, path = link.removeprefix(f"{REPOSITORY}/").partition("/HEAD/")
        assert kind == ("raw" if before.endswith(".png") else "blob"), link
        assert path == before
        assert (ROOT / path.partition("#")[0]).exists(), f"README.md links to {before}"
    assert "<img" not in page, "a picture that setup.py does not rewrite"
    assert any(link.endswith(".png") for link in shown)


def test_the_lines_of_python_are_calls_that_coma_takes() -> None:
    """What the functions do is tested beside them; all lines run in order there with the page on Python."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func).removeprefix("coma.") for call in calls} - {"print"}
    assert names == {"shard", "pretrain", "probe", "export"}
    for call in calls:
        if (name := ast.unparse(call.func)) != "print":
            options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
            signature = inspect.signature(getattr(coma, name.removeprefix("coma.")))
            signature.bind(*call.args, **options)


def test_metadata_say_what_an_index_lists(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    versions = {version for each in classifiers if (version := each.rpartition(":: ")[2]).startswith("3.")}
    assert versions == {"3.11", "3.12", "3.13"}
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert "Typing :: Typed" in classifiers
    assert metadata["Author"] == PROJECT["authors"][0]["name"]
    assert {each.split(", ")[0] for each in metadata.get_all("Project-URL", [])} == set(PROJECT["urls"])


def test_every_address_of_the_repository_is_the_same_one() -> None:
    urls = {name: url for name, url in PROJECT["urls"].items() if name != "Paper"}
    assert all(url.startswith(REPOSITORY) for url in urls.values())
    for file in [ROOT / "CITATION.cff", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert all(
            url.startswith(REPOSITORY) for url in re.findall(r"https://github\.com/coma[\w./-]*", file.read_text())
        )


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["repository-code"] == REPOSITORY
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert len(paper["authors"]) == 9


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(words[0], words[1]) for line in text.splitlines() if (words := line.split(maxsplit=1))]


def test_the_container_installs_what_there_is_and_ends_as_an_ordinary_user() -> None:
    steps = instructions()
    known = {"FROM", "RUN", "ARG", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} <= known
    assert steps[0][0] == "FROM"
    python = re.match(r"python:(\d\.\d+)-", steps[0][1])
    assert python
    assert f"Programming Language :: Python :: {python[1]}" in PROJECT["classifiers"]
    last_run = max(number for number, (name, _) in enumerate(steps) if name == "RUN")
    users = [(number, user) for number, (name, user) in enumerate(steps) if name == "USER"]
    assert users[-1][0] > last_run
    assert users[-1][1] not in ("root", "0")
    assert f"useradd --create-home --uid 1000 {users[-1][1]}" in steps[last_run][1]
    for name, words in steps:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in words.split()[:-1])
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(words), list)
    installing = " ".join(words for name, words in steps if name == "RUN" and "uv sync" in words)
    (group,) = set(re.findall(r'--group "(\w+)\$CUDA"', installing))
    assert {f"{group}{version}" for version in (12, 13)} <= set(PYPROJECT["dependency-groups"])
    assert set(re.findall(r"--extra (\w+)", installing)) <= set(PROJECT["optional-dependencies"])
    assert dict(steps)["ARG"] == "CUDA=12"


def test_what_the_container_leaves_out_is_not_what_it_needs() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split("\n")
    needed = {"pyproject.toml", "uv.lock", "setup.py", "coma_vision.py", "README.md", "LICENSE"}
    needed |= {"coma", "cli", "pipeline", "shards", "deepspeed_configs"}
    assert needed.isdisjoint(left_out)
    assert all((ROOT / name).exists() for name in needed)
