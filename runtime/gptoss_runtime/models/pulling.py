"""Downloads one artifact from the hub into a folder.

The files are downloaded to a staging folder, checked against the manifest, and moved into place with one rename. An
interrupted pull leaves nothing under the final name, and the next pull resumes it. hub.py downloads single files; the
registry decides where an artifact belongs.
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
from gptoss_runtime.models.catalog import Published
from gptoss_runtime.models.hub import Hub, Listing

RESERVE = 256 << 20  # bytes of disk space that a pull leaves free
RECORD = ".pulled.json"
_MAX_MANIFEST = 8 << 20
_MAX_FILES = 10_000
_LARGE = 64 << 20  # bytes; configurations and graphs without weights are smaller


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a pull: bytes of all files, and the current file; "waiting": another process pulls the same model."""

    stage: Literal["waiting", "download", "verify"]
    done: int
    total: int
    file: str


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Record:
    """The source of a pulled artifact, stored in its folder as ``.pulled.json``."""

    repository: str
    revision: str
    subfolder: str
    commit: str

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Reads the record of a folder; returns None if there is no readable one."""
        try:
            return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def pull(source: Published, destination: Path, hub: Hub, progress: OnProgress) -> None:
    """Makes ``destination`` the artifact that the hub currently has; does nothing if it already is.

    Args:
        source: the variant to download.
        destination: the artifact's folder; hidden folders and a lock file are created beside it.
        hub: the hub.
        progress: called with the progress; an exception from it stops the pull, which can be resumed later.

    Raises:
        HubError: the hub cannot be reached, or does not have the artifact.
        ArtifactError: the artifact on the hub is damaged, unsafe or not an artifact; nothing of it is used.
        ResourceError: the disk is too small, or the old version is in use.
    """
    with lock_folder(destination, lambda: progress(Progress("waiting", 0, 0, ""))):
        _recover(destination)
        if _is_pinned(source, Record.read(destination)):
            return
        listing = hub.list_files(source.repository, source.revision)
        record = Record(source.repository, source.revision, source.subfolder, listing.commit)
        if Record.read(destination) == record:
            return
        check_file_names(source.repository, list(listing.files))
        staging = staging_folder(destination)
        folder = staging / "artifact"
        with _disk_errors(destination):
            folder.mkdir(parents=True, exist_ok=True)
            manifest = _fetch(source, listing, hub, folder, progress)
            _keep_only(folder, {MANIFEST, *manifest.files})
            (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8", newline="\n")
            Artifact.open(folder)
            check_contents(folder)
            _publish(folder, destination)
            shutil.rmtree(staging, ignore_errors=True)


def staging_folder(destination: Path) -> Path:
    """Returns the folder in which a pull collects its files until they are complete."""
    return destination.with_name(f".{destination.name}.partial")


@contextlib.contextmanager
def lock_folder(destination: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Locks an artifact's folder against other processes for the length of a ``with`` block.

    Args:
        destination: the folder.
        waiting: called once before waiting for another process; ``None``: do not wait.

    Raises:
        ResourceError: another process holds the lock and ``waiting`` is None, or the lock file cannot be created.
        BackendUnavailable: filelock is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise BackendUnavailable("filelock is not installed", remedy='pip install "gptoss-windows[hub]"') from error
    with _disk_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(destination.with_name(f".{destination.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is None:
                raise ResourceError(
                    f"{destination} is being pulled", remedy="Wait until the other process is done, or end it."
                ) from None
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_pinned(source: Published, record: Record | None) -> bool:
    """Whether the catalog names a commit and that commit is already here, so that the hub need not be asked."""
    return (
        record is not None
        and record.commit == source.revision
        and record == Record(source.repository, source.revision, source.subfolder, record.commit)
    )


def _fetch(source: Published, listing: Listing, hub: Hub, folder: Path, progress: OnProgress) -> Manifest:
    """Downloads the manifest and then its files; a file gets its final name once its sha256 matches the manifest."""
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    manifest = _fetch_manifest(source.repository, prefix, listing, hub, folder)
    _check_listing(source.repository, prefix, manifest, listing)
    missing = {name: entry for name, entry in manifest.files.items() if not _is_whole(folder / name, entry)}
    parts = {name: folder.with_name(f"{entry.sha256}.part") for name, entry in missing.items()}
    here = sum(part.stat().st_size for part in set(parts.values()) if part.exists())
    _check_space(folder, sum(entry.size for entry in missing.values()) - here)
    total = sum(entry.size for entry in manifest.files.values())
    done = total - sum(entry.size for entry in missing.values())
    checked = False
    for name in sorted(missing, key=lambda name: missing[name].size):  # largest last, so that errors show early
        entry, part = missing[name], parts[name]
        if entry.size > _LARGE and not checked:
            check_contents(folder)
            checked = True

        def report_received(count: int, name: str = name, before: int = done) -> None:
            progress(Progress("download", before + count, total, name))

        hub.fetch(source.repository, listing.commit, prefix + name, part, entry.size, report_received)
        done += entry.size
        progress(Progress("verify", done, total, name))
        _check_file(part, entry, name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        part.replace(folder / name)
    return manifest


def _fetch_manifest(repository: str, prefix: str, listing: Listing, hub: Hub, folder: Path) -> Manifest:
    size = listing.files.get(prefix + MANIFEST)
    if size is None or size > _MAX_MANIFEST:
        raise ArtifactError(f"{repository} has no usable {prefix}{MANIFEST}", remedy="Check the entry in the catalog.")
    (folder / MANIFEST).unlink(missing_ok=True)  # it may be from another commit
    hub.fetch(repository, listing.commit, prefix + MANIFEST, folder / MANIFEST, size, lambda _: None)
    return Manifest.read(folder)


def _check_listing(repository: str, prefix: str, manifest: Manifest, listing: Listing) -> None:
    """Checks that the repository contains the files of its manifest, by name and size."""
    if len(manifest.files) > _MAX_FILES:
        raise ArtifactError(f"{repository}: the manifest lists {len(manifest.files):,} files", remedy="Do not use it.")
    check_file_names(repository, list(manifest.files))
    for name, entry in manifest.files.items():
        if listing.files.get(prefix + name) != entry.size:
            raise ArtifactError(
                f"{repository}: {prefix}{name} is missing, or its size differs from the manifest",
                remedy="The publisher must upload the complete folder again.",
            )


def _check_space(folder: Path, size: int) -> None:
    """Checks that the disk has room for ``size`` bytes in a folder, which need not exist yet.

    Raises:
        ResourceError: it does not.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size + RESERVE:
        raise ResourceError(
            f"{folder.parent} needs {(size + RESERVE) / 1e9:.1f} GB of disk space, and {free / 1e9:.1f} GB are free",
            remedy="Free disk space, or set GPTOSS_CACHE to a folder on a larger disk.",
        )


def _is_whole(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and not path.is_symlink() and FileEntry.from_file(path) == entry


def _check_file(part: Path, entry: FileEntry, name: str) -> None:
    if not _is_whole(part, entry):
        part.unlink()
        raise ArtifactError(
            f"the downloaded {name} differs from the manifest (sha256)",
            remedy="Pull again to download this file again. If the error repeats, the repository is damaged.",
        )


def _keep_only(folder: Path, names: set[str]) -> None:
    """Removes files that are not in ``names``, left over from another version."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _publish(folder: Path, destination: Path) -> None:
    """Replaces the old folder with the new one; :func:`_recover` repairs a crash between the two renames."""
    old = _old_folder(destination)
    if destination.exists():
        try:
            destination.rename(old)
        except PermissionError as error:
            raise in_use_error(destination) from error
    folder.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def _recover(destination: Path) -> None:
    old = _old_folder(destination)
    if old.exists():
        if destination.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(destination)


def _old_folder(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.old")


def in_use_error(path: Path) -> ResourceError:
    """Returns the error for a folder that Windows does not rename because one of its files is open."""
    return ResourceError(f"{path} is in use", remedy="Close the program that has this model loaded, then try again.")


@contextlib.contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    """Converts OSError to ResourceError."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{destination}: {error.strerror or error}", remedy="Free disk space, or make the folder writable."
        ) from error
