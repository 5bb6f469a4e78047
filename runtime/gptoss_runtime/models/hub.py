"""The only module that uses huggingface_hub: lists a repository at a commit and downloads single files.

huggingface_hub handles ``HF_ENDPOINT``, ``HF_TOKEN`` and proxies; it is imported on first use. Knows nothing of
artifacts. Error messages name repositories and files but never URLs, because URLs of a CDN contain signatures.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptoss_runtime.errors import BackendUnavailable, GptOssError, HubError, ResourceError

LIBRARY = "gptoss-windows"
_MAX_QUOTED = 200  # characters of another library's message
OnReceived = Callable[[int], None]
_RETRY = "Run the same command again; it continues where it stopped."


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at a commit, with their sizes in bytes."""

    commit: str
    files: dict[str, int]


class Hub:
    """A hub with Hugging Face's API.

    Args:
        endpoint: its URL; ``None``: ``HF_ENDPOINT``, or Hugging Face.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def list_files(self, repository: str, revision: str) -> Listing:
        """Lists the files of a repository, and resolves a revision to a commit.

        Raises:
            HubError: the hub cannot be reached, or has no such repository or revision.
            BackendUnavailable: huggingface_hub is not installed.
        """
        hub = _import_huggingface_hub()
        try:
            found = hub.HfApi(endpoint=self._endpoint, library_name=LIBRARY).model_info(
                repository, revision=revision, files_metadata=True, timeout=30
            )
        except Exception as error:  # its own errors, its HTTP client's, and OSError
            raise _convert_error(error, f"{repository} at {revision}") from error
        files = {file.rfilename: int(file.size or 0) for file in found.siblings or ()}
        if not found.sha:
            raise HubError(f"the hub returned no commit for {repository} at {revision}", remedy=_RETRY)
        return Listing(found.sha, files)

    def fetch(self, repository: str, commit: str, file: str, part: Path, size: int, received: OnReceived) -> None:
        """Downloads one file, or the rest of it if an earlier attempt in any process was interrupted.

        ``hf_hub_download`` would restart the file in every process, and the largest file has 13 GB.

        Args:
            repository: id of the repository.
            commit: a full commit, so that all parts of a file are from the same version.
            file: path of the file in the repository.
            part: destination; bytes that are already there are kept.
            size: size of the file in bytes.
            received: called with the number of bytes received so far.

        Raises:
            HubError: the hub cannot be reached, or the file is incomplete.
            ResourceError: the disk is full or not writable.
        """
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._resume(repository, commit, file, part, size, received)
                return
            except Exception as error:  # as above
                progress = part.stat().st_size - before if part.exists() else 0
                if progress <= 0 or not _is_connection_loss(error):
                    raise _convert_error(error, f"{file} of {repository}") from error

    def _resume(self, repository: str, commit: str, file: str, part: Path, size: int, received: OnReceived) -> None:
        hub = _import_huggingface_hub()
        from huggingface_hub.file_download import http_get

        url = hub.hf_hub_url(repository, file, revision=commit, endpoint=self._endpoint)
        found = hub.get_hf_file_metadata(url, endpoint=self._endpoint, library_name=LIBRARY)
        is_hub = urlsplit(found.location)[:2] == urlsplit(url)[:2]  # never send the token to a CDN
        headers = hub.utils.build_hf_headers(token=None if is_hub else False, library_name=LIBRARY)
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
                tqdm_class=_make_progress_class(received),
            )
        received(size)


def _import_huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BackendUnavailable(
            f"huggingface_hub cannot be imported: {error}", remedy='pip install "gptoss-windows[hub]"'
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings contain signed URLs
    return huggingface_hub


def _make_progress_class(received: OnReceived) -> type[Any]:
    """Returns a tqdm class that displays nothing and reports progress to ``received``."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]
            self._here = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._here += int(n or 0)
            received(self._here)

    return Bar


def _is_connection_loss(error: Exception) -> bool:
    """Whether the connection broke, as opposed to an error response of the hub or an error of the file system."""
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError | GptOssError) and getattr(error, "errno", None) is None


def _convert_error(error: Exception, what: str) -> GptOssError:
    from huggingface_hub import errors

    match error:
        case GptOssError():
            return error
        case errors.GatedRepoError():
            remedy = "Accept its terms on the hub, then log in: hf auth login (or set HF_TOKEN)."
            return HubError(f"{what}: access requires accepting the repository's terms", remedy=remedy)
        case errors.RepositoryNotFoundError():
            remedy = "Check the name in the catalog; if it is private, log in: hf auth login (or set HF_TOKEN)."
            return HubError(f"{what}: the hub has no such repository, or it is private", remedy=remedy)
        case errors.RevisionNotFoundError():
            return HubError(f"{what}: the hub has no such revision", remedy="Check the revision in the catalog.")
        case errors.EntryNotFoundError():
            return HubError(f"{what}: the hub has no such file", remedy="The repository changed: pull again.")
        case errors.OfflineModeIsEnabled():
            remedy = "Unset HF_HUB_OFFLINE, or use a model on this machine: gptoss models list --here"
            return HubError(f"{what}: HF_HUB_OFFLINE is set", remedy=remedy)
        case errors.HfHubHTTPError():
            return HubError(f"{what}: the hub answered with status {error.response.status_code}", remedy=_RETRY)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(f"{what}: the disk is full", remedy="Free disk space, then run the command again.")
        case PermissionError():
            remedy = "Close programs that use the file, or make the cache folder writable."
            return ResourceError(f"{what}: {error.strerror or 'cannot be written'}", remedy=remedy)
    quoted = " ".join(str(error).split("http", 1)[0].split())[:_MAX_QUOTED]
    return HubError(
        f"{what}: {type(error).__name__}{': ' if quoted else ''}{quoted}",
        remedy=f"Check the network connection. {_RETRY}",
    )
