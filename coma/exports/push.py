"""Push of an export to the Hugging Face Hub: checked before anything is written, and one commit for all files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.errors import ComaError, UsageError, is_of_a_store
from coma.exports.folder import NAMES

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""How long the Hub may take to answer at all: its client would try again for half a minute."""


def check_push(repository: str, license: str | None) -> None:
    """Check all that a push needs before the export is written.

    Raises:
        UsageError: the repository's name is malformed, no licence is given, or there is no token.
        ComaError: the Hub does not answer, or does not take the token.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import get_session, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        whole = repository.count("/") == 1
    except HFValidationError:
        whole = False
    if not whole:
        raise UsageError(
            f"--push {repository!r} is no name of a repository: give OWNER/NAME, of letters, digits, - _ and ."
        )
    if license is None:
        raise UsageError(
            "--push publishes the weights, and no licence is guessed: give --license apache-2.0, cc-by-nc-4.0, other, "
            "... or unknown"
        )
    if get_token() is None:
        raise UsageError(
            "--push needs a token of the Hub that may write: `hf auth login`, or set HF_TOKEN "
            "(https://huggingface.co/settings/tokens)"
        )
    with _in_one_line(repository, "could not be pushed", "nothing was written"):
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
        _api().whoami()


def push_folder(folder: Path, repository: str, *, private: bool, message: str) -> dict[str, Any]:
    """Upload an export in one commit, which also removes what an earlier one had and this has not.

    Args:
        folder: what `coma export` wrote.
        repository: OWNER/NAME; it is made if there is none.
        private: whether a new one is seen by its owner only; one that exists stays as it is.
        message: that of the commit.

    Returns:
        `url` of the repository, and `commit`.

    Raises:
        ComaError: the Hub does not take it; the repository has all of the commit or nothing of it.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    api = _api()
    files = sorted(path for path in folder.iterdir() if path.name in NAMES)
    with _in_one_line(repository, "could not be pushed", f"the export is in {folder}"), _quiet_progress():
        try:
            api.create_repo(repository, private=private, exist_ok=True)
        except HfHubHTTPError as error:
            if not api.repo_exists(repository):
                raise
            logger.debug("the repository exists: %s", error)
        here = {path.name for path in files}
        stale = sorted((NAMES - here).intersection(api.list_repo_files(repository)))
        operations: list[Any] = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in files]
        operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
        commit = api.create_commit(repository, operations, commit_message=message)
    return {"url": f"{api.endpoint}/{repository}", "commit": commit.oid}


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="coma")


@contextmanager
def _in_one_line(repository: str, what: str, state: str) -> Iterator[None]:
    """Raise what the Hub or the way to it did as an error of one line."""
    try:
        yield
    except (KeyboardInterrupt, ComaError):
        raise
    except Exception as error:
        if not (is_of_a_store(error) or isinstance(error, OSError | ValueError)):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        server = getattr(error, "server_message", None)
        text = f"{text[:160].rstrip(' .:')}{f': {server}' if server and server not in text else ''}"
        way = {
            401: "check the token (`hf auth whoami`)",
            403: f"the token may not write there: check it, and that {repository.partition('/')[0]!r} is yours",
        }.get(status or 0, "check the network, and that the Hub is up (https://status.huggingface.co)")
        raise ComaError(f"{repository} {what}, and {state}: {' '.join(text.split())}; {way}") from None


@contextmanager
def _quiet_progress() -> Iterator[None]:
    """Draw no progress bars of the Hub's client, as the command shows that it is at work."""
    from huggingface_hub import utils

    bars: Any = utils
    if bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()
