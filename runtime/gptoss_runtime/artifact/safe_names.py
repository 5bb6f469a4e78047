"""Checks names that become paths: of models and targets, and of files from another machine.

Applies the rules of Windows and of POSIX on every system: a repository that is unsafe on one is rejected on all.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from gptoss_runtime.errors import ArtifactError, InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_RESERVED = re.compile(r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|COM[0-9¹²³]|LPT[0-9¹²³])(?:[ .].*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')  # a colon separates a drive or an alternate data stream
_MAX_PART = 200
_MAX_PATH = 400


def is_name(text: str) -> bool:
    """Whether this can be the name of a model or a target, and therefore of a folder."""
    return _NAME.fullmatch(text) is not None and _is_safe_part(text)


def check_name(text: str, kind: str) -> str:
    """Returns the name if it can be a folder name.

    Args:
        text: the name.
        kind: what it names, for the message: "model".

    Raises:
        InvalidRequest: it cannot.
    """
    if not is_name(text):
        raise InvalidRequest(
            f"{text[:100]!r} cannot be the name of a {kind}",
            remedy="Use letters, digits, '.', '_' and '-', and no device name that Windows reserves, such as CON.",
        )
    return text


def check_file_names(repository: str, files: list[str]) -> None:
    """Checks that every file of a repository stays inside its folder and keeps its own name.

    Args:
        repository: its name, for the message.
        files: paths from the hub, with "/" as the separator.

    Raises:
        ArtifactError: a path leaves the folder (``..``, absolute, a drive), names a device or a stream, or is the same
            file as another one on a file system that ignores case or normalizes Unicode.
    """
    seen: set[str] = set()
    for file in files:
        if not is_safe_path(file):
            raise _unsafe_file_error(repository, file, "does not have a name that is safe on every system")
        folded = unicodedata.normalize("NFC", file).casefold()
        if folded in seen:
            raise _unsafe_file_error(repository, file, "differs from another file only in case or Unicode form")
        seen.add(folded)


def is_safe_path(file: str) -> bool:
    """Whether a relative path, with "/" as the separator, stays inside its folder on every system."""
    parts = file.split("/")
    return len(file) <= _MAX_PATH and not PurePosixPath(file).is_absolute() and all(map(_is_safe_part, parts))


def _is_safe_part(part: str) -> bool:
    """Whether one part of a path keeps its meaning on every system; Windows drops trailing dots and spaces."""
    if not part or part in (".", "..") or len(part) > _MAX_PART or part[-1] in ". ":
        return False
    return not (_FORBIDDEN.search(part) or _RESERVED.fullmatch(part) or any(0xD800 <= ord(c) < 0xE000 for c in part))


def _unsafe_file_error(repository: str, file: str, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{repository}: the file {file[:200]!r} {reason}",
        remedy="Nothing was kept. Do not trust this repository.",
    )
