"""Commands that add to this installation or repair it, and whether another distribution got in its way.

The package index has an unrelated distribution called coma, whose module is called `coma` too. This project is the
distribution coma-vision: no command made here installs "coma".
"""

import base64
import csv
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from coma.errors import shell_command
from coma.installed.versions import DISTRIBUTION, checkout_folder

NAMESAKE = "coma"
"""The unrelated distribution, by its name on the index."""
SHARED_FILE = "coma/__init__.py"
"""The file that both distributions bring."""
_OURS = ("coma", "coma_vision.py")
"""Package and module of the distribution."""


@dataclass(frozen=True)
class Installation:
    """How coma-vision came into this environment, and the commands that fit."""

    installer: tuple[str, ...] = ("pip",)
    """Words that begin a command of the installer: pip, or uv pip."""
    checkout: Path | None = None
    """The source tree that is imported, None for an installed wheel."""
    synced: bool = False
    """Whether `uv sync` made the environment for the checkout."""
    origin: str = DISTRIBUTION
    """What the installer takes to install the same again: a name, or the URL of a file."""

    def extra(self, name: str) -> str:
        """Return the command that installs an extra: s3, gcs, onnx, ray."""
        if self.synced:
            return self._here(self._sync("--extra", name))
        if self.checkout:
            return self.install("-e", f"{self.checkout}[{name}]")
        return self.install(f"{DISTRIBUTION}[{name}]")

    def install(self, *requirements: object) -> str:
        """Return the command that installs other distributions into the same environment."""
        return self._here(self._install(*requirements))

    def group(self, name: str, *requirements: str) -> str:
        """Return the command that installs a group of the checkout, or else the requirements it stands for."""
        return self._here(self._sync("--group", name)) if self.synced else self.install(*requirements)

    def restore(self, *requirements: str) -> str:
        """Return the command that installs the requirements that are not met."""
        return self._here(self._sync()) if self.synced else self.install(*requirements)

    def replace(self, unwanted: Sequence[str], *requirements: str) -> str:
        """Return the command that removes distributions, without asking, and installs others in their place."""
        return self._here(*self._uninstall(*unwanted), self._install(*requirements))

    def reinstall(self, *unwanted: str) -> str:
        """Return the command that removes distributions and installs coma-vision anew."""
        if self.synced:
            return self._here(*self._uninstall(*unwanted), self._sync("--reinstall-package", DISTRIBUTION))
        if self.checkout:
            return self._here(*self._uninstall(*unwanted), self._install("--no-deps", "-e", self.checkout))
        return self._here(*self._uninstall(*unwanted, DISTRIBUTION), self._install("--no-deps", self.origin))

    def _install(self, *words: object) -> str:
        return shell_command(*self.installer, "install", *words)

    def _uninstall(self, *names: str) -> list[str]:
        asking = ["-y"] if self.installer == ("pip",) else []
        return [shell_command(*self.installer, "uninstall", *asking, *names)] if names else []

    def _sync(self, *words: str) -> str:
        """Return `uv sync`, which keeps what else is there: another group, packages installed by hand."""
        return shell_command(self.installer[0], "sync", "--inexact", *words)

    def _here(self, *commands: str) -> str:
        """Return the commands as one line that works here: in a checkout's folder alone uv finds its environment."""
        elsewhere = self.synced and Path.cwd() != self.checkout
        return " && ".join([shell_command("cd", self.checkout), *commands] if elsewhere else commands)


def installation() -> Installation:
    """Return how coma-vision came into this environment, by what its installer left there."""
    checkout = checkout_folder()
    try:
        ours = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return Installation(checkout=checkout)
    by_uv = (ours.read_text("INSTALLER") or "").strip() == "uv"
    origin = str(json.loads(ours.read_text("direct_url.json") or "{}").get("url", DISTRIBUTION))
    if checkout is None:
        return Installation(("uv", "pip") if by_uv else ("pip",), origin=origin)
    environment = checkout / os.environ.get("UV_PROJECT_ENVIRONMENT", ".venv")
    synced = by_uv and environment.resolve() == Path(sys.prefix).resolve()
    uv = ".uv/bin/uv" if synced and (checkout / ".uv" / "bin" / "uv").exists() else "uv"
    return Installation((uv, "pip") if by_uv else ("pip",), checkout, synced, origin)


def namesake() -> Distribution | None:
    """Return the unrelated distribution that brings a module `coma` as well, None if it is not installed."""
    for other in distributions(name=NAMESAKE):
        if other.read_text("RECORD") and SHARED_FILE in map(str, other.files or ()):
            return other
    return None


def changed_files() -> list[str]:
    """Return the files of the installed wheel that are missing or have other bytes than were installed."""
    try:
        ours = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return []
    record = None if checkout_folder() else ours.read_text("RECORD")  # its `files` leave out what is missing
    rows = [row for row in csv.reader((record or "").splitlines()) if Path(row[0]).parts[0] in _OURS]
    hashes = {path: given.split("=", 1) for path, given, _ in rows if given}
    return [path for path, (mode, hash) in hashes.items() if _digest(Path(str(ours.locate_file(path))), mode) != hash]


def _digest(path: Path, algorithm: str) -> str:
    """Return the digest of a file as RECORD has it, an empty string if there is no such file."""
    try:
        digest = hashlib.new(algorithm, path.read_bytes()).digest()
    except OSError:
        return ""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
