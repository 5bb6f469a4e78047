"""Which names are safe: of models and targets, and of files that another machine sends, on every file system.

Knows the rules of Windows and of POSIX, and applies both everywhere: a repository that would lead astray on one of
them is refused on all.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from gptoss_runtime.errors import ArtifactError, InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_RESERVED = re.compile(r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|COM[0-9¹²³]|LPT[0-9¹²³])(?:[ .].*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')  # a colon is a drive, or a stream of a file
_LONGEST_PART = 200
_LONGEST = 400


def is_name(text: str) -> bool:
    """Whether this can be the name of a model or a target, and so of a folder."""
    return _NAME.fullmatch(text) is not None and _is_plain(text)


def check_name(text: str, kind: str) -> str:
    """A name that can be a folder's.

    Args:
        text: the name.
        kind: what it names, for the message.

    Raises:
        InvalidRequest: it can't be.
    """
    if not is_name(text):
        raise InvalidRequest(
            f"{text[:100]!r} cannot be the name of a {kind}",
            remedy="Use letters, digits, '.', '_' and '-', and none of the names that Windows keeps for devices.",
        )
    return text


def check_files(repository: str, files: list[str]) -> None:
    """Whether every file of a repository would stay where it belongs, under its own name.

    Args:
        repository: for the message.
        files: paths as the hub gives them, separated by "/".

    Raises:
        ArtifactError: one leads out (``..``, absolute, a drive), names a device or a stream, or is spelt so that a file
            system takes it for another one.
    """
    seen: set[str] = set()
    for file in files:
        if not is_safe_path(file):
            raise _refused(repository, file, "is no name that is safe on every system")
        folded = unicodedata.normalize("NFC", file).casefold()
        if folded in seen:
            raise _refused(repository, file, "is there twice for a file system that ignores case")
        seen.add(folded)


def is_safe_path(file: str) -> bool:
    """Whether a relative path, with "/" between its parts, stays below the folder it is put in."""
    parts = file.split("/")
    return len(file) <= _LONGEST and not PurePosixPath(file).is_absolute() and all(_is_plain(part) for part in parts)


def _is_plain(part: str) -> bool:
    """Whether one part of a path means itself: Windows drops dots and spaces at the end."""
    if not part or part in (".", "..") or len(part) > _LONGEST_PART or part[-1] in ". ":
        return False
    return not (_FORBIDDEN.search(part) or _RESERVED.fullmatch(part) or any(0xD800 <= ord(c) < 0xE000 for c in part))


def _refused(repository: str, file: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"{repository}: the file {file[:200]!r} {why}",
        remedy="Nothing of it was kept. Do not trust this repository.",
    )
