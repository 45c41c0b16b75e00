"""MkDocs hook: files of the repository as pages of the site, and links to them.

README.md is the front page. CHANGELOG.md, CONTRIBUTING.md and the examples are pages as well. A link from a page to
such a file, written as it works in the repository, leads to its page; a link to another file leads to the repository.
"""

import json
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PAGES |= {f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted((ROOT / "examples").glob("*.[ip]*"))}
RECORDS = ("changelog.md", "experiments.md")
"""Pages that the search lists after the others."""
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=content_of(source)))
    return files


def content_of(source: str) -> str:
    """Return a file as Markdown: a notebook's cells, or Python in a block of code under its docstring's first line."""
    text = (ROOT / source).read_text()
    if source == "README.md":
        return f"---\nhide: [navigation]\n---\n\n{text}"
    if source.endswith(".md"):
        return text
    if source.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        return "\n\n".join(part for cell in cells for part in (_source(cell), *map(_output, cell.get("outputs", ()))))
    title = re.sub(r'^"""|"""$', "", text.splitlines()[0]).rstrip(".")
    return f'# {title}\n\n```python title="{source}"\n{text}```\n'


def _source(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def _output(output: dict[str, Any]) -> str:
    """Return what a cell shows, a table, a picture or text, as Markdown."""
    data = {kind: "".join(value) for kind, value in output["data"].items()}
    if "text/html" in data:
        return f"<div>{data['text/html']}</div>"
    if "image/jpeg" in data:
        return f'<img alt="Output of the cell" src="data:image/jpeg;base64,{data["image/jpeg"].strip()}">'
    return f"```text\n{data['text/plain']}\n```"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages; a page's title replaces its file's name."""
    path = page.file.src_uri
    if path in RECORDS:
        page.meta["search"] = {"boost": 0.3}
    source = next((source for source, target in PAGES.items() if target == path), f"docs/{path}")

    def moved(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["file"]))
        if file not in PAGES and not re.match(r"docs/.*\.(md|png)$", file):
            return f"[{link['text']}]({REPOSITORY}/blob/HEAD/{file})" if (ROOT / file).is_file() else link[0]
        target = PAGES.get(file, file.removeprefix("docs/"))
        names_file = link["text"].strip("`").endswith(posixpath.basename(link["file"]))
        text = _title(files, target) if names_file else link["text"]
        return f"[{text}]({'../' * path.count('/')}{target}{link['anchor']})"

    return re.sub(r"\[(?P<text>[^\]]*)\]\((?P<file>[\w./-]+)(?P<anchor>(?:#[\w-]*)?)\)", moved, markdown)


def _title(files: Files, target: str) -> str:
    """Return the first heading of a page; its path if there is no such page, of which the build warns."""
    file = files.get_file_from_path(target)
    heading = re.search("^# (.*)", "" if file is None else file.content_string, re.M)
    return heading[1] if heading else target
