"""Whether the checkpoint is what was published, and stays what it was: checksums and stamps of its files.

Files are hashed in the background while they are converted, so that their bytes are read from disk once. Expected
checksums come from where downloads leave them: the names of the Hugging Face cache's blobs, the metadata beside a
``--local-dir`` download, or a SHA256SUMS file. Knows files; knows nothing of tensors.
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
_AGAIN = "Download that file again; then convert without --resume."


def list_source_files(checkpoint: Checkpoint) -> list[Path]:
    """config.json and the shards."""
    return [checkpoint.path / "config.json", *checkpoint.files]


def read_stamps(checkpoint: Checkpoint) -> dict[str, Stamp]:
    """Size and time of every file used, by name.

    Raises:
        CheckpointError: one has gone.
    """
    result = {}
    for file in list_source_files(checkpoint):
        try:
            result[file.name] = read_stamp(file)
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror or error}", remedy=_AGAIN) from error
    return result


def find_expected_sha256(file: Path) -> str | None:
    """The sha256 that a file should have, where a download or its publisher left it beside; None if they did not."""
    target = file.resolve()
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    found = (_noted(file) or _listed(file)).lower()
    return found if _SHA256.fullmatch(found) else None


def _noted(file: Path) -> str:
    """What ``hf download --local-dir`` noted: the second line is the etag, a large file's sha256; others' is none."""
    lines = _lines(file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata")
    etag = lines[1].strip().lower() if len(lines) > 1 else ""
    return etag if _SHA256.fullmatch(etag) else ""


def _listed(file: Path) -> str:
    """What sha256sum wrote."""
    names = ([file.name], [f"*{file.name}"])
    lines = map(str.split, _lines(file.parent / "SHA256SUMS"))
    return next((words[0] for words in lines if words[1:] in names), "")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


class SourceDigests:
    """sha256 of all files used, made in a thread of its own.

    Args:
        checkpoint: whose.

    Raises:
        CheckpointError: a file has gone already.
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
        """Raises what was found so far.

        Raises:
            CheckpointError: a file is not what its checksum says.
        """
        if self._error is not None:
            raise self._error

    def result(self) -> dict[str, FileEntry]:
        """Waits for the rest; every file by name.

        Raises:
            CheckpointError: a file is not what its checksum says, or has changed since this was made.
        """
        self._thread.join()
        self.raise_if_failed()
        now = read_stamps(self._checkpoint)
        changed = [name for name, stamp in self._stamps.items() if now[name] != stamp]
        if changed:
            raise CheckpointError(
                f"{self.path}: {', '.join(changed)} changed while it was converted",
                remedy="Convert again when nothing writes to that folder.",
            )
        return dict(self._entries)

    def stop(self) -> None:
        """Ends the thread; what it has not read is not needed any more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for file in list_source_files(self._checkpoint):
                digest = self._hash(file)
                if digest is None:
                    return
                wanted = find_expected_sha256(file)
                if wanted is not None and digest != wanted:
                    raise CheckpointError(f"{file}: damaged: its sha256 is {digest}, not {wanted}", remedy=_AGAIN)
                self._entries[file.name] = FileEntry(size=self._stamps[file.name][0], sha256=digest)
        except CheckpointError as error:
            self._error = error
        except OSError as error:
            self._error = CheckpointError(f"{error.filename}: {error.strerror or error}", remedy=_AGAIN)

    def _hash(self, file: Path) -> str | None:
        digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
        with file.open("rb", buffering=0) as stream:
            while (count := stream.readinto(buffer)) and not self._stopped.is_set():
                digest.update(memoryview(buffer)[:count])
        return None if self._stopped.is_set() else digest.hexdigest()
