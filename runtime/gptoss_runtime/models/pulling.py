"""Brings one artifact from the hub into a folder: aside, checked against its manifest, then in one rename.

Knows the steps and what may go wrong between them; who serves the files is hub.py's to know, and where they belong the
registry's. A pull that ends early leaves nothing under the final name, and the next one goes on where it ended.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gptoss_runtime.artifact.folder import Artifact, check_contents
from gptoss_runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from gptoss_runtime.artifact.safe_names import check_file_names
from gptoss_runtime.errors import ArtifactError, BackendUnavailable, ResourceError
from gptoss_runtime.models.catalogue import Published
from gptoss_runtime.models.hub import Hub, Listing

RESERVE = 256 << 20  # bytes of disk that a pull leaves free
RECORD = ".pulled.json"
_MAX_MANIFEST = 8 << 20
_MAX_FILES = 10_000
_LARGE = 64 << 20  # bytes; configurations and graphs without weights are smaller


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is: bytes of all files, and the one at hand. "waiting": another process pulls the same."""

    stage: Literal["waiting", "download", "verify"]
    done: int
    total: int
    file: str


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Record:
    """Where a pulled artifact came from; kept in it as ``.pulled.json``."""

    repository: str
    revision: str
    subfolder: str
    commit: str

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record of a folder; None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def pull(source: Published, destination: Path, hub: Hub, progress: OnProgress) -> None:
    """Makes ``destination`` the artifact that the hub has now; does nothing where it is that already.

    Args:
        source: what to fetch.
        destination: the artifact's folder; its neighbours of the same name behind a dot are used on the way.
        hub: where from.
        progress: told how far it is; what it raises ends the pull, which can be gone on with later.

    Raises:
        HubError: the hub cannot be reached, or does not have it.
        ArtifactError: what the hub has is damaged, unsafe, or no artifact; nothing of it is used.
        ResourceError: the disk is too small, or the old version is in use.
    """
    with locked(destination, lambda: progress(Progress("waiting", 0, 0, ""))):
        _recover(destination)
        if _pinned(source, Record.read(destination)):
            return
        listing = hub.listing(source.repository, source.revision)
        record = Record(source.repository, source.revision, source.subfolder, listing.commit)
        if Record.read(destination) == record:
            return
        check_file_names(source.repository, list(listing.files))
        aside = staging(destination)
        folder = aside / "artifact"
        with _disk(destination):
            folder.mkdir(parents=True, exist_ok=True)
            manifest = _fetch(source, listing, hub, folder, progress)
            _keep_only(folder, {MANIFEST, *manifest.files})
            (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8", newline="\n")
            Artifact.open(folder)
            check_contents(folder)
            _publish(folder, destination)
            shutil.rmtree(aside, ignore_errors=True)


def staging(destination: Path) -> Path:
    """Where a pull collects its files until they are whole."""
    return destination.with_name(f".{destination.name}.partial")


@contextlib.contextmanager
def locked(destination: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock of an artifact's folder, which processes share.

    Args:
        destination: the folder.
        waiting: called once before waiting for another holder; ``None``: do not wait.

    Raises:
        ResourceError: another process holds it and ``waiting`` is None, or there is no place for the lock.
        BackendUnavailable: filelock is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise BackendUnavailable("filelock is not installed", remedy='pip install "gptoss-windows[hub]"') from error
    with _disk(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(destination.with_name(f".{destination.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is None:
                raise ResourceError(
                    f"{destination} is being pulled", remedy="Wait until that is done, or end it."
                ) from None
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _pinned(source: Published, record: Record | None) -> bool:
    """Whether the very commit that the catalogue names is here: nothing to ask the hub then."""
    return (
        record is not None
        and record.commit == source.revision
        and record == Record(source.repository, source.revision, source.subfolder, record.commit)
    )


def _fetch(source: Published, listing: Listing, hub: Hub, folder: Path, progress: OnProgress) -> Manifest:
    """The manifest first, and then what it lists; a file gets its name once its sha256 is the manifest's."""
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    manifest = _fetch_manifest(source.repository, prefix, listing, hub, folder)
    _check_listed(source.repository, prefix, manifest, listing)
    missing = {name: entry for name, entry in manifest.files.items() if not _is_whole(folder / name, entry)}
    parts = {name: folder.with_name(f"{entry.sha256}.part") for name, entry in missing.items()}
    here = sum(part.stat().st_size for part in set(parts.values()) if part.exists())
    _check_space(folder, sum(entry.size for entry in missing.values()) - here)
    total = sum(entry.size for entry in manifest.files.values())
    done = total - sum(entry.size for entry in missing.values())
    judged = False
    for name in sorted(missing, key=lambda name: missing[name].size):  # the largest last: what is wrong shows early
        entry, part = missing[name], parts[name]
        if entry.size > _LARGE and not judged:
            check_contents(folder)
            judged = True

        def received(count: int, name: str = name, before: int = done) -> None:
            progress(Progress("download", before + count, total, name))

        hub.fetch(source.repository, listing.commit, prefix + name, part, entry.size, received)
        done += entry.size
        progress(Progress("verify", done, total, name))
        _check(part, entry, name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        part.replace(folder / name)
    return manifest


def _fetch_manifest(repository: str, prefix: str, listing: Listing, hub: Hub, folder: Path) -> Manifest:
    size = listing.files.get(prefix + MANIFEST)
    if size is None or size > _MAX_MANIFEST:
        raise ArtifactError(
            f"{repository} has no {prefix}{MANIFEST} that could be one", remedy="Check the catalogue's entry."
        )
    (folder / MANIFEST).unlink(missing_ok=True)  # it may be another commit's
    hub.fetch(repository, listing.commit, prefix + MANIFEST, folder / MANIFEST, size, lambda _: None)
    return Manifest.read(folder)


def _check_listed(repository: str, prefix: str, manifest: Manifest, listing: Listing) -> None:
    """Whether the repository holds what its manifest says, by name and size."""
    if len(manifest.files) > _MAX_FILES:
        raise ArtifactError(f"{repository}: the manifest lists {len(manifest.files):,} files", remedy="Do not use it.")
    check_file_names(repository, list(manifest.files))
    for name, entry in manifest.files.items():
        if listing.files.get(prefix + name) != entry.size:
            raise ArtifactError(
                f"{repository}: {prefix}{name} is missing or not of the size that the manifest says",
                remedy="Its publisher has to upload it again, whole.",
            )


def _check_space(folder: Path, size: int) -> None:
    """Whether the disk of a folder, which need not exist yet, has room.

    Raises:
        ResourceError: it has not.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < size + RESERVE:
        raise ResourceError(
            f"{folder.parent} needs {(size + RESERVE) / 1e9:.1f} GB of disk and has {free / 1e9:.1f} free",
            remedy="Free some, or set GPTOSS_CACHE to a folder on a larger disk.",
        )


def _is_whole(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and not path.is_symlink() and FileEntry.from_file(path) == entry


def _check(part: Path, entry: FileEntry, name: str) -> None:
    if not _is_whole(part, entry):
        part.unlink()
        raise ArtifactError(
            f"{name} did not come as the manifest lists it (sha256)",
            remedy="Pull again: only this file is fetched. If it stays, the repository is damaged.",
        )


def _keep_only(folder: Path, names: set[str]) -> None:
    """Removes files of another version."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _publish(folder: Path, destination: Path) -> None:
    """Puts the new folder in the old one's place; a crash in between is mended by :func:`_recover`."""
    old = _old(destination)
    if destination.exists():
        try:
            destination.rename(old)
        except PermissionError as error:
            raise in_use(destination) from error
    folder.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def _recover(destination: Path) -> None:
    old = _old(destination)
    if old.exists():
        if destination.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(destination)


def _old(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.old")


def in_use(path: Path) -> ResourceError:
    """Windows does not move a folder of which a file is open."""
    return ResourceError(f"{path} is in use", remedy="End the program that has this model loaded, then try again.")


@contextlib.contextmanager
def _disk(destination: Path) -> Iterator[None]:
    """Says of the file system's errors what they mean here."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{destination}: {error.strerror or error}", remedy="Free some disk space, or make the folder writable."
        ) from error
