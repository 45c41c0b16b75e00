"""The calls of the Hugging Face Hub's API that pushing a model and loading it again take, on a real server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hub import as_json, missing
from servers import Answer, Handler, Server, serving

TOKEN = "hf_of-a-test"
OWNER = "someone"


@dataclass
class Repository:
    """Commits of a model, each with all its files."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def sha(self, number: int = -1) -> str:
        return f"{len(self.commits) - 1 if number == -1 else number:040x}"


class ModelHub(Handler):
    """Serves `server.repositories`; whoever writes needs `TOKEN`."""

    server: HubServer

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def from_folder(self) -> Answer:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        body = self.body()
        hub.calls.append(f"{self.command} {path}")
        if hub.broken is not None and re.search(hub.broken, path):
            return error(500, "out of order")
        if path in ("/", ""):
            return as_json({})
        if path.startswith("/lfs/"):  # an address that is signed
            hub.large[path.removeprefix("/lfs/")] = body
            return 200, {"Content-Length": "0"}, b""
        reading = re.fullmatch(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path)
        if reading:
            return self.resolved(reading["id"], reading["revision"], reading["file"])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return error(401, "Invalid username or password.")
        if path == "/api/whoami-v2":
            return as_json({"type": "user", "name": OWNER, "auth": {"type": "access_token"}})
        if path == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.created(json.loads(body))
        batch = re.fullmatch(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        if batch:
            return self.to_upload(json.loads(body))
        call = re.fullmatch(r"/api/models/(?P<id>[^/]+/[^/]+)(/(?P<what>[a-z]+)(/(?P<revision>[^/]+))?)?", path)
        if call is None or call["id"] not in hub.repositories:
            return missing("RepoNotFound")
        return self.of_model(call["id"], call["what"], body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def created(self, asked: dict[str, Any]) -> Answer:
        if asked["organization"] != OWNER:
            return error(
                403, f"You don't have the rights to create a model under the namespace {asked['organization']}"
            )
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.hub.repositories:
            _, headers, body = as_json({"error": "You already created this model repo", "url": self.url(name)})
            return 409, headers, body
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.hub.repositories[name] = Repository(private)
        return as_json({"url": self.url(name), "name": name, "id": name})

    def url(self, name: str) -> str:
        return f"{self.server.url}/{name}"

    def to_upload(self, asked: dict[str, Any]) -> Answer:
        objects = []
        for each in asked["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}}
            known = each["oid"] in self.server.hub.large
            objects.append({**each, **({} if known else {"actions": upload})})
        return as_json({"transfer": "basic", "objects": objects})

    def of_model(self, name: str, what: str | None, body: bytes) -> Answer:
        repository = self.server.hub.repositories[name]
        if what in (None, "revision"):
            files = [{"rfilename": file} for file in repository.files]
            facts = {"id": name, "sha": repository.sha(), "private": repository.private, "tags": [], "siblings": files}
            return as_json(facts)
        if what == "tree":
            return as_json([entry(file, data) for file, data in repository.files.items()])
        if what == "preupload":
            return as_json({"files": [self.mode(repository, each) for each in json.loads(body)["files"]]})
        assert what == "commit"
        files = dict(repository.files)
        for line in body.splitlines():
            record = json.loads(line)
            value = record["value"]
            if record["key"] == "header":
                repository.messages.append(value["summary"])
            elif record["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif record["key"] == "lfsFile":
                data = self.server.hub.large[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                assert len(data) == value["size"]
                files[value["path"]] = data
            else:
                assert record["key"] == "deletedFile"
                del files[value["path"]]
        repository.commits.append(files)
        sha = repository.sha()
        return as_json({"success": True, "commitOid": sha, "commitUrl": f"{self.url(name)}/commit/{sha}"})

    def mode(self, repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        large = asked["path"].endswith((".safetensors", ".onnx", ".png"))
        there = repository.files.get(asked["path"])
        oid = None if there is None else hashlib.sha256(there).hexdigest() if large else blob(there)
        return {
            "path": asked["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    def resolved(self, name: str, revision: str, file: str) -> Answer:
        repository = self.server.hub.repositories.get(name)
        if repository is None:
            return missing("RepoNotFound")
        number = int(revision, 16) if re.fullmatch("[0-9a-f]{40}", revision) else -1
        data = repository.commits[number].get(file)
        if data is None:
            status, headers, body = missing("EntryNotFound")
            return status, {**headers, "X-Repo-Commit": repository.sha(number)}, body
        headers = {
            "Content-Length": str(len(data)),
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": repository.sha(number),
        }
        return 200, headers, data


@dataclass
class HubState:
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    broken: str | None = None
    """Pattern of the paths that are answered with an error."""
    url: str = ""


class HubServer(Server):
    hub: HubState


def blob(data: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": blob(data), "size": len(data)}


def error(status: int, text: str) -> Answer:
    _, headers, body = as_json({"error": text})
    return status, {**headers, "X-Error-Message": text}, body


@contextmanager
def model_hub(cache: Path) -> Iterator[HubState]:
    """A Hub without models; this process and those that it starts ask it, with a token and a cache of their own."""
    import huggingface_hub

    with serving(cache, handler=ModelHub) as server, pytest.MonkeyPatch.context() as patch:
        server.hub = state = HubState(url=server.url)  # type: ignore[attr-defined]
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_CACHE": str(cache),
        }.items():
            patch.setenv(name, value)
        constants = huggingface_hub.constants
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        yield state
