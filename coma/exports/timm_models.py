"""Models of timm by name, from a folder or the Hub; each fault on the way is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import timm

from coma.errors import ComaError, DataError, UsageError, fault_of, is_of_a_store
from coma.exports.folder import WEIGHTS_NAME

T = TypeVar("T")

HUB, LOCAL = "hf-hub:", "local-dir:"
"""What timm writes before a repository of the Hub, and before a folder."""
_ALIASES = {"hf_hub:": HUB}
_PATIENCE_S = 10.0
"""How long the Hub may take to answer at all."""


def check_hub(name: str, given: str) -> None:
    """Check that the Hub answers, unless a model is in the cache: the client would try for most of a minute.

    Raises:
        ComaError: it does not.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if name.startswith(LOCAL):
        return
    try:
        repository = name.removeprefix(HUB).partition("@")[0]
        if not name.startswith(HUB):
            cfg = timm.models.get_pretrained_cfg(name)
            if cfg is None or not cfg.hf_hub_id:
                return
            repository = cfg.hf_hub_id
        files = ("config.json", WEIGHTS_NAME)
        if not any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
            get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except Exception as error:
        raise as_coma_error(error, name, given) from None


def asking(ask: Callable[[], T], name: str, given: str) -> T:
    """Ask timm for a model; what goes wrong is an error of one line."""
    try:
        return ask()
    except ComaError:
        raise
    except Exception as error:
        raise as_coma_error(error, name, given) from None


def as_coma_error(error: Exception, name: str, given: str) -> ComaError:
    """Return the one line that says why timm did not give a model."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if is_of_a_store(error) or type(error).__name__ in ("URLError", "HTTPError"):  # urllib's, of torch.hub
        missing = type(error).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError")
        what = "is not on the Hub, or not for this token" if missing else "could not be downloaded"
        check = "check the name, and HF_TOKEN" if missing else "check the network"
        return ComaError(
            f"{given} {what} ({text}): {check}, or fetch its files elsewhere and name their folder, {LOCAL}FOLDER"
        )
    if name.startswith(LOCAL):
        return DataError(f"{given} is no model that timm can load ({text}): save it anew (timm.models.save_for_hf)")
    if isinstance(error, RuntimeError) and ("pretrained" in text.lower() or "Unknown model" in text):
        base = name.partition(".")[0]
        tags = timm.list_pretrained(f"{base}.*")[:3] if not name.startswith(HUB) else []
        way = f"name one of {', '.join(tags)}" if tags else f"name a folder with weights, {LOCAL}FOLDER"
        return UsageError(f"{given}: timm has no such weights ({text.rstrip('.')}): {way}")
    return fault_of(error) or DataError(f"{given} is no model that timm can load ({text}): take another")


def plain(given: Path | str) -> str:
    """Return a name of a model as timm writes it."""
    text = str(given)
    for alias, prefix in _ALIASES.items():
        if text.startswith(alias):
            return prefix + text.removeprefix(alias)
    return text
