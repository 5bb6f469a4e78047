"""External data files: what an interrupted run left is verified, everything after it is appended.

Every file has a running SHA-256. A :class:`Prefix` records how far a file has come; the journal in writing.py stores
prefixes, and ``--resume`` verifies them. Knows files; knows nothing of what is in them.

A freshly written file is not read back: the operating system would answer from its page cache, not from the disk.
``gptoss inspect`` compares an artifact with its manifest's checksums at any later time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptoss_convert.weights import Extent

_CHUNK = 8 << 20  # bytes hashed and written at a time
Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def read_stamp(file: Path) -> Stamp:
    """A file's size and modification time, to notice a change without reading it."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


class Prefix(NamedTuple):
    """The first ``length`` bytes of a file and their SHA-256."""

    length: int
    sha256: str


class WrittenFile(NamedTuple):
    """A complete file: its SHA-256, and its stamp when it was closed."""

    sha256: str
    stamp: Stamp


class DataFiles:
    """Files that are verified up to a prefix, cut there, and then appended to.

    Args:
        folder: an existing folder.
        names: of the files, which need not exist yet.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._lengths = dict.fromkeys(names, 0)
        self._digests = {name: hashlib.sha256() for name in names}
        self._changed: set[str] = set()
        self._streams: dict[str, BinaryIO] = {}

    def __enter__(self) -> DataFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_streams()

    @property
    def written(self) -> int:
        """Bytes in all files."""
        return sum(self._lengths.values())

    def verify(self, prefixes: Mapping[str, Prefix]) -> bool:
        """Reads each file on to the end of a prefix and compares checksums.

        Args:
            prefixes: by file name; none shorter than what was verified before.

        Returns:
            Whether all files match. If one doesn't, nothing counts as verified that wasn't before.
        """
        verified = {}
        for name, (length, sha256) in prefixes.items():
            if name not in self._digests or length < self._lengths[name]:
                return False
            digest = self._digests[name].copy()
            if not _hash_range(self._folder / name, self._lengths[name], length, digest):
                return False
            if digest.hexdigest() != sha256:
                return False
            verified[name] = digest, length
        for name, (digest, length) in verified.items():
            self._digests[name], self._lengths[name] = digest, length
        return True

    def truncate(self) -> None:
        """Cuts every file after what was verified; creates missing files."""
        for name, length in self._lengths.items():
            with (self._folder / name).open("r+b" if length else "wb") as stream:
                stream.truncate(length)

    def append(self, extent: Extent, data: memoryview) -> Iterator[int]:
        """Writes an initializer's bytes, after padding up to its offset; yields :attr:`written` after each chunk."""
        name = extent.file
        stream, padding = self._stream(name), extent.offset - self._lengths[name]
        self._changed.add(name)
        for chunk in (memoryview(bytes(padding)), *(data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))):
            done = 0
            while done < len(chunk):
                done += stream.write(chunk[done:])
            self._digests[name].update(chunk)
            self._lengths[name] += len(chunk)
            yield self.written

    def take_prefixes(self) -> dict[str, Prefix]:
        """Prefixes of the files that were appended to since the last call."""
        prefixes = {
            name: Prefix(self._lengths[name], self._digests[name].hexdigest()) for name in sorted(self._changed)
        }
        self._changed.clear()
        return prefixes

    def close(self) -> dict[str, WrittenFile]:
        """Closes the files; all of them by name."""
        self._close_streams()
        return {
            name: WrittenFile(digest.hexdigest(), read_stamp(self._folder / name))
            for name, digest in self._digests.items()
        }

    def _close_streams(self) -> None:
        while self._streams:
            self._streams.popitem()[1].close()

    def _stream(self, name: str) -> BinaryIO:
        if name not in self._streams:
            # Unbuffered: what the journal records has left this process.
            self._streams[name] = (self._folder / name).open("ab", buffering=0)
        return self._streams[name]


def _hash_range(file: Path, start: int, end: int, digest: Any) -> bool:
    """Updates a digest with a file's bytes from ``start`` to ``end``; False if the file is missing or shorter."""
    if not file.is_file():
        return False
    buffer = memoryview(bytearray(min(_CHUNK, max(1, end - start))))
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while start < end:
            count = stream.readinto(buffer[: end - start])
            if not count:
                return False
            digest.update(buffer[:count])
            start += count
    return True
