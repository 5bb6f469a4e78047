"""External data files as they grow: appended to, and read back to see that the disk has what was written.

Where a file ends and its checksum up to there are a *mark*. Reading on to a mark is how an interrupted run is taken up,
and how a running one is followed: in a thread of its own, while the bytes are still in the system's cache. Knows files;
knows nothing of what is in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptoss_convert.errors import OutputError
from gptoss_convert.weights import Extent

_CHUNK = 8 << 20
Stamp = tuple[int, int]  # bytes, and nanoseconds of the last change


def stamp(file: Path) -> Stamp:
    """What changes when a file does."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def other_bytes(where: Path) -> OutputError:
    """What to raise where a disk does not keep what it is given."""
    return OutputError(
        f"{where}: gives back other bytes than were written",
        remedy="Check the disk and its cables; then convert again.",
    )


class Mark(NamedTuple):
    """Where a file ends, in bytes, and the sha256 of all before."""

    end: int
    sha256: str


class Written(NamedTuple):
    """A whole file that was read back: its sha256, and its stamp then."""

    sha256: str
    stamp: Stamp


Marks = Mapping[str, Mark]


class Known:
    """What was read of some files: how far, and the checksum up to there.

    Args:
        folder: where they are.
        names: of files that may be missing yet.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.digests = {name: hashlib.sha256() for name in names}
        self.ends = dict.fromkeys(names, 0)

    def copy(self) -> Known:
        """The same, to go on by itself."""
        copy = Known(self.folder, list(self.ends))
        copy.digests, copy.ends = {name: digest.copy() for name, digest in self.digests.items()}, dict(self.ends)
        return copy

    def advance(self, marks: Marks) -> bool:
        """Reads on to where the marks say files came to; False, and nothing changed, if what is there is not that."""
        ahead = {}
        for name, (end, sha256) in marks.items():
            if name not in self.digests or end < self.ends[name]:
                return False
            digest = self.digests[name].copy()
            if not self._read(name, end, digest) or digest.hexdigest() != sha256:
                return False
            ahead[name] = digest, end
        for name, (digest, end) in ahead.items():
            self.digests[name], self.ends[name] = digest, end
        return True

    def cut(self) -> None:
        """Drops what lies behind, and makes files that are missing."""
        for name, end in self.ends.items():
            with (self.folder / name).open("r+b" if end else "wb") as stream:
                stream.truncate(end)

    def _read(self, name: str, end: int, digest: Any) -> bool:
        path, at = self.folder / name, self.ends[name]
        if not path.is_file():
            return False
        buffer = memoryview(bytearray(min(_CHUNK, max(1, end - at))))
        with path.open("rb", buffering=0) as stream:
            stream.seek(at)
            while at < end:
                count = stream.readinto(buffer[: end - at])
                if not count:
                    return False
                digest.update(buffer[:count])
                at += count
        return True


class Files:
    """The files, to be appended to.

    Args:
        known: of files that end where it says.
    """

    def __init__(self, known: Known) -> None:
        self._folder = known.folder
        copy = known.copy()
        self._digests, self._ends = copy.digests, copy.ends
        self._streams: dict[str, BinaryIO] = {}
        self._touched: set[str] = set()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def written(self) -> int:
        """Bytes in all files."""
        return sum(self._ends.values())

    def marks(self) -> Marks:
        """Of the files that were written to since the last call."""
        marks = {name: Mark(self._ends[name], self._digests[name].copy().hexdigest()) for name in sorted(self._touched)}
        self._touched.clear()
        return marks

    def put(self, extent: Extent, data: memoryview) -> Iterator[int]:
        """Writes an initializer's bytes where they belong, yielding after each chunk how many are in all files."""
        name = extent.file
        stream, padding = self._stream(name), extent.offset - self._ends[name]
        self._touched.add(name)
        for chunk in (memoryview(bytes(padding)), *(data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))):
            done = 0
            while done < len(chunk):
                done += stream.write(chunk[done:])
            self._digests[name].update(chunk)
            self._ends[name] += len(chunk)
            yield self.written

    def close(self) -> dict[str, Written]:
        """Ends the files; all of them by name."""
        self._close()
        return {name: Written(digest.hexdigest(), stamp(self._folder / name)) for name, digest in self._digests.items()}

    def _close(self) -> None:
        while self._streams:
            self._streams.popitem()[1].close()

    def _stream(self, name: str) -> BinaryIO:
        if name not in self._streams:
            # Unbuffered: what the journal vouches for has left this process.
            self._streams[name] = (self._folder / name).open("ab", buffering=0)
        return self._streams[name]


class ReadBack:
    """Reads growing files back, in a thread of its own.

    Args:
        known: where they end now.
    """

    def __init__(self, known: Known) -> None:
        self._known = known.copy()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="readback")
        self._reads: list[Future[bool]] = []

    def __enter__(self) -> ReadBack:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._check(self._reads)

    def follow(self, marks: Marks) -> None:
        """Has files read to their marks.

        Raises:
            OutputError: the disk gave other bytes back, earlier.
        """
        self._check([read for read in self._reads if read.done()])
        self._reads = [read for read in self._reads if not read.done()]
        self._reads.append(self._pool.submit(self._known.advance, marks))

    def _check(self, reads: Sequence[Future[bool]]) -> None:
        if not all(read.result() for read in reads):
            raise other_bytes(self._known.folder)
