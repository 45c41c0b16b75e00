"""The few calls of the Hugging Face Hub's API that its file system makes to read a data set's repository."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from servers import Answer, Handler

REPOSITORY = "someone/photos"


class Hub(Handler):
    """Serves the folder as the one data set `someone/photos`, on its branch `main`."""

    def do_POST(self) -> None:
        self.answer()

    def from_folder(self) -> Answer:
        root = Path(self.server.source)
        path = unquote(urlsplit(self.path).path)
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        call = re.fullmatch(rf"/api/datasets/{REPOSITORY}(/(?P<what>[a-z-]+)/main(/(?P<path>.*))?)?", path)
        if call is None:
            file = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/main/")
            return self.file(root / file) if file != path else missing("RepoNotFound")
        if call["what"] in (None, "revision"):
            return as_json({"id": REPOSITORY, "sha": "0" * 40, "private": False, "tags": [], "siblings": []})
        if call["what"] == "tree":
            folder = root / (call["path"] or "")
            found = sorted(folder.iterdir()) if folder.is_dir() else None
            return missing("EntryNotFound") if found is None else as_json([entry(root, p) for p in found])
        asked = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
        return as_json([entry(root, root / name) for name in asked if (root / name).exists()])


def entry(root: Path, path: Path) -> dict[str, object]:
    kind = "directory" if path.is_dir() else "file"
    size = 0 if path.is_dir() else path.stat().st_size
    return {"type": kind, "path": str(path.relative_to(root)), "oid": "0" * 40, "size": size}


def as_json(content: object) -> Answer:
    body = json.dumps(content).encode()
    return 200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body


def missing(code: str) -> Answer:
    return 404, {"Content-Length": "0", "X-Error-Code": code}, b""
