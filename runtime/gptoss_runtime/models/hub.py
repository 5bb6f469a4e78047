"""The only room that knows huggingface_hub: what a repository holds at a commit, and one file of it at a time.

Where the hub is and who asks is huggingface_hub's to know: ``HF_ENDPOINT``, ``HF_TOKEN``, proxies. Imported when first
used. Knows nothing of artifacts. What it raises names repositories and files, never an address: those of a content
network carry signatures.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptoss_runtime.errors import BackendUnavailable, GptOssError, HubError, ResourceError

LIBRARY = "gptoss-windows"
_QUOTED = 200
Received = Callable[[int], None]
_AGAIN = "Run the same command again: what is there already is not fetched twice."


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at a commit: its files with their sizes in bytes."""

    commit: str
    files: dict[str, int]


class Hub:
    """A hub that speaks Hugging Face's API.

    Args:
        endpoint: its address; ``None``: ``HF_ENDPOINT``, or Hugging Face's.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def listing(self, repository: str, revision: str) -> Listing:
        """What a repository holds, and which commit a revision is now.

        Raises:
            HubError: the hub cannot be reached, or has no such repository or revision.
            BackendUnavailable: huggingface_hub is not installed.
        """
        hub = _library()
        try:
            found = hub.HfApi(endpoint=self._endpoint, library_name=LIBRARY).model_info(
                repository, revision=revision, files_metadata=True, timeout=30
            )
        except Exception as error:  # its own errors, its HTTP client's, and OSError
            raise _explained(error, f"{repository} at {revision}") from error
        files = {file.rfilename: int(file.size or 0) for file in found.siblings or ()}
        if not found.sha:
            raise HubError(f"the hub does not say which commit {repository} at {revision} is", remedy=_AGAIN)
        return Listing(found.sha, files)

    def fetch(self, repository: str, commit: str, file: str, part: Path, size: int, received: Received) -> None:
        """Downloads one file, going on where an earlier try, of this process or another, ended.

        ``hf_hub_download`` starts a file anew in every process, and one file here has 13 GB: so this asks for the rest.

        Args:
            repository: its id.
            commit: a full commit, so that both halves of a file are of the same one.
            file: its path in the repository.
            part: where to; what is there already is kept.
            size: how many bytes it has.
            received: told how many bytes of it are here, as they come.

        Raises:
            HubError: the hub cannot be reached, or the file did not come whole.
            ResourceError: the disk is full or cannot be written.
        """
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._go_on(repository, commit, file, part, size, received)
                return
            except Exception as error:  # see above
                came = part.stat().st_size - before if part.exists() else 0
                if came <= 0 or not _was_cut(error):
                    raise _explained(error, f"{file} of {repository}") from error

    def _go_on(self, repository: str, commit: str, file: str, part: Path, size: int, received: Received) -> None:
        hub = _library()
        from huggingface_hub.file_download import http_get

        url = hub.hf_hub_url(repository, file, revision=commit, endpoint=self._endpoint)
        found = hub.get_hf_file_metadata(url, endpoint=self._endpoint, library_name=LIBRARY)
        ours = urlsplit(found.location)[:2] == urlsplit(url)[:2]  # a content network's address is no place for a token
        headers = hub.utils.build_hf_headers(token=None if ours else False, library_name=LIBRARY)
        with part.open("ab") as stream:
            have = stream.tell()
            received(have)
            http_get(
                found.location,
                stream,
                resume_size=have,
                headers=headers,
                expected_size=size,
                displayed_filename=file,
                tqdm_class=_bar(received),
            )
        received(size)


def _library() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # its user agent then names no session and no frameworks
    try:
        import huggingface_hub
    except ImportError as error:
        raise BackendUnavailable(
            f"huggingface_hub cannot be imported: {error}", remedy='pip install "gptoss-windows[hub]"'
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings quote signed addresses
    return huggingface_hub


def _bar(received: Received) -> type[Any]:
    """A progress bar's class that shows nothing and passes on what it is told."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]
            self._here = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._here += int(n or 0)
            received(self._here)

    return Bar


def _was_cut(error: Exception) -> bool:
    """Whether the connection ended: neither an answer of the hub's, nor this machine's file system."""
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError | GptOssError) and getattr(error, "errno", None) is None


def _explained(error: Exception, what: str) -> GptOssError:
    from huggingface_hub import errors

    match error:
        case GptOssError():
            return error
        case errors.GatedRepoError():
            remedy = "Accept its terms on the hub, then log in: hf auth login (or set HF_TOKEN)."
            return HubError(f"{what}: the hub wants its terms accepted first", remedy=remedy)
        case errors.RepositoryNotFoundError():
            remedy = "Check the name in the catalogue; if it is private, log in: hf auth login (or set HF_TOKEN)."
            return HubError(f"{what}: the hub has no such repository, or not for everyone", remedy=remedy)
        case errors.RevisionNotFoundError():
            return HubError(f"{what}: the hub has no such revision", remedy="Check the revision in the catalogue.")
        case errors.EntryNotFoundError():
            return HubError(f"{what}: the hub has no such file", remedy="The repository changed: pull again.")
        case errors.OfflineModeIsEnabled():
            remedy = "Unset HF_HUB_OFFLINE, or use a model that is here: gptoss models list"
            return HubError(f"{what}: huggingface_hub is told to stay offline", remedy=remedy)
        case errors.HfHubHTTPError():
            return HubError(f"{what}: the hub answered with status {error.response.status_code}", remedy=_AGAIN)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(f"{what}: the disk is full", remedy="Free some disk space, then run it again.")
        case PermissionError():
            remedy = "Close what uses the file, or make the cache folder writable."
            return ResourceError(f"{what}: {error.strerror or 'cannot be written'}", remedy=remedy)
    said = " ".join(str(error).split("http", 1)[0].split())[:_QUOTED]
    return HubError(
        f"{what}: {type(error).__name__}{': ' if said else ''}{said}", remedy=f"{_AGAIN} Is there a network?"
    )
