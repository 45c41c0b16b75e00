"""Every Python file that README.md, CONTRIBUTING.md, CHANGELOG.md or a page of docs/ names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    """From the root, where its commands run, or as a link from the page itself."""
    paths = set(re.findall(r"[\w./-]+\.py\b", page.read_text()))
    missing = {path for path in paths if not (ROOT / path).is_file() and not (page.parent / path).is_file()}
    assert not missing


def test_pages_name_files() -> None:
    assert sum(".py" in page.read_text() for page in PAGES) > 5
