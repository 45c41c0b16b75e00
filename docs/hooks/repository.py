"""MkDocs hook: files of the repository as pages of the site, and links to them.

README.md is the front page. CHANGELOG.md, CONTRIBUTING.md and the examples are pages as well. A link from a page to such a
file, written as it works in the repository, leads to its page.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PAGES |= {f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted((ROOT / "examples").glob("*.py"))}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=content_of(source)))
    return files


def content_of(source: str) -> str:
    """Return a file as Markdown: Python in a block of code under its docstring's first line."""
    text = (ROOT / source).read_text()
    if not source.endswith(".py"):
        return text
    title = re.sub(r'^"""|"""$', "", text.splitlines()[0]).rstrip(".")
    return f"# {title}\n\n```python title=\"{source}\"\n{text}```\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages."""
    path = page.file.src_uri
    source = next((source for source, target in PAGES.items() if target == path), f"docs/{path}")
    return re.sub(r"(\]\()([\w./-]+)((?:#[\w-]*)?\))", lambda link: link[1] + moved(link[2], source, path) + link[3], markdown)


def moved(link: str, source: str, path: str) -> str:
    """Return where a link of `source` leads in the site, from the page `path`; unchanged if it leads to no page."""
    target = _normal(PurePosixPath(source).parent / link)
    target = PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
    if target is None:
        return link
    return "../" * path.count("/") + target


def _normal(path: PurePosixPath) -> str:
    """Return a path without `..`."""
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)
