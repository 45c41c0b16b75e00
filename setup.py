"""The README as an index page shows it: relative links and pictures become URLs of the repository.

All else about the distribution is in pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def with_urls(readme: str) -> str:
    """Return the text with `](docs/page.md)` as a page of the repository, and `![…](docs/picture.png)` as its bytes."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["picture"] else "blob"
        return f"{link['text']}({REPOSITORY}/{kind}/HEAD/{link['target']})"

    return re.sub(r"(?P<text>(?P<picture>!?)\[[^\]]*\])\((?!\w+:|#)(?P<target>[^)\s]+)\)", absolute, readme)


setup(long_description=with_urls((ROOT / "README.md").read_text()), long_description_content_type="text/markdown")
