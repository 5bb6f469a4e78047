"""Checksums of the checkpoint's files: compared with the published ones, and recorded in the manifest.

Files are hashed in the background while they are converted, so that the disk is read only once. Published checksums
are found where downloads leave them: the names of the Hugging Face cache's blobs, the metadata beside a ``--local-dir``
download, or a SHA256SUMS file. Knows files; knows nothing of tensors.
Source: huggingface_hub's file_download.py and _local_folder.py.
"""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.data_files import Stamp, read_stamp
from gptoss_convert.errors import CheckpointError
from gptoss_runtime.artifact.manifest import FileEntry

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 4 << 20
_REDOWNLOAD = "Download that file again; then convert without --resume."


def list_source_files(checkpoint: Checkpoint) -> list[Path]:
    """config.json and the shards."""
    return [checkpoint.path / "config.json", *checkpoint.files]


def read_stamps(checkpoint: Checkpoint) -> dict[str, Stamp]:
    """Size and modification time of every file used, by name.

    Raises:
        CheckpointError: a file is missing.
    """
    result = {}
    for file in list_source_files(checkpoint):
        try:
            result[file.name] = read_stamp(file)
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror or error}", remedy=_REDOWNLOAD) from error
    return result


def find_expected_sha256(file: Path) -> str | None:
    """The SHA-256 that the publisher or a download recorded for a file; None if there is no record."""
    target = file.resolve()
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    found = (_read_hub_metadata(file) or _read_sha256sums(file)).lower()
    return found if _SHA256.fullmatch(found) else None


def _read_hub_metadata(file: Path) -> str:
    """The ETag that ``hf download --local-dir`` wrote on its second line: a large file's SHA-256; "" for others."""
    lines = _read_lines(file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata")
    etag = lines[1].strip().lower() if len(lines) > 1 else ""
    return etag if _SHA256.fullmatch(etag) else ""


def _read_sha256sums(file: Path) -> str:
    """The file's entry in SHA256SUMS, as sha256sum writes it; "" if there is none."""
    names = ([file.name], [f"*{file.name}"])
    lines = map(str.split, _read_lines(file.parent / "SHA256SUMS"))
    return next((words[0] for words in lines if words[1:] in names), "")


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


class SourceDigests:
    """SHA-256 of all files used, computed in a background thread that starts at once.

    Args:
        checkpoint: the open checkpoint.

    Raises:
        CheckpointError: a file is missing.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self._checkpoint = checkpoint
        self._stamps = read_stamps(checkpoint)
        self._entries: dict[str, FileEntry] = {}
        self._error: CheckpointError | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checksums", daemon=True)
        self._thread.start()

    def raise_if_failed(self) -> None:
        """Raises the thread's error, if there is one already.

        Raises:
            CheckpointError: a file does not match its published checksum.
        """
        if self._error is not None:
            raise self._error

    def result(self) -> dict[str, FileEntry]:
        """Waits for the thread; returns the entry of every file by name.

        Raises:
            CheckpointError: a file does not match its published checksum, or changed during the conversion.
        """
        self._thread.join()
        self.raise_if_failed()
        now = read_stamps(self._checkpoint)
        changed = [name for name, stamp in self._stamps.items() if now[name] != stamp]
        if changed:
            raise CheckpointError(
                f"{self.path}: {', '.join(changed)} changed while it was converted",
                remedy="Convert again while no other program writes to that folder.",
            )
        return dict(self._entries)

    def stop(self) -> None:
        """Stops the thread and waits for its end."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for file in list_source_files(self._checkpoint):
                digest = self._hash(file)
                if digest is None:
                    return
                expected = find_expected_sha256(file)
                if expected is not None and digest != expected:
                    raise CheckpointError(
                        f"{file}: damaged: its sha256 is {digest}, not {expected}", remedy=_REDOWNLOAD
                    )
                self._entries[file.name] = FileEntry(size=self._stamps[file.name][0], sha256=digest)
        except CheckpointError as error:
            self._error = error
        except OSError as error:
            self._error = CheckpointError(f"{error.filename}: {error.strerror or error}", remedy=_REDOWNLOAD)

    def _hash(self, file: Path) -> str | None:
        """A file's SHA-256; None if the thread was stopped meanwhile."""
        digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
        with file.open("rb", buffering=0) as stream:
            while (count := stream.readinto(buffer)) and not self._stopped.is_set():
                digest.update(memoryview(buffer)[:count])
        return None if self._stopped.is_set() else digest.hexdigest()
