"""Opens an artifact folder and rejects a damaged or unsafe one before native code reads it.

An artifact is data: nothing in it is executed, and only checked bytes are loaded. Knows the files of the folder and the
contents of genai_config.json; knows nothing of execution providers, and does not read the weights (unless ``verify``
asks for the sha256 of every file).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gptoss_runtime.artifact import genai_config, strict_json
from gptoss_runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from gptoss_runtime.artifact.onnx_file import ExternalSpan, GraphError, find_external_data
from gptoss_runtime.artifact.safe_names import is_safe_path
from gptoss_runtime.errors import ArtifactError
from gptoss_runtime.providers import default_provider

CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
_MAX_GRAPH = 2**31 - 1  # protobuf's limit
Stamp = tuple[int, int, int, int]  # identifies a file's content: device, inode, size in bytes, modification time in ns
_RECONVERT = "Convert the checkpoint again, or copy the whole folder again."
_REMOVE_KEY = "Remove it if the model does not need it, or convert the checkpoint again."
_DISTRUST = "Do not use this artifact: onnxruntime-genai and Foundry Local would load it without these checks."


@dataclass(frozen=True, slots=True)
class Graph:
    """The graph of an artifact at the time it was checked.

    Attributes:
        name: path of its file in the folder, with "/" as the separator.
        sha256: digest of the file.
        weights: the external data files, by path in the folder.
    """

    name: str
    sha256: str
    weights: Mapping[str, Stamp]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact folder that passed all checks.

    Args:
        path: the folder, absolute.
        name: the model's name: the manifest's, or the folder's if there is no manifest.
        target: the target it was converted for, or "unknown" without a manifest.
        context_length: maximum context length, in tokens.
        vocab_size: size of the logits' last dimension.
        eos_token_ids: stop tokens.
        bos_token_id: the beginning-of-sequence token, or None.
        config: genai_config.json, checked.
        graph: the checked graph.
        manifest: manifest.json, or None if there is none (a conversion by another tool).
    """

    path: Path
    name: str
    target: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    config: dict[str, Any]
    graph: Graph
    manifest: Manifest | None

    @property
    def provider(self) -> str:
        """The execution provider it was converted for; "cpu" without a manifest."""
        return "cpu" if self.manifest is None else self.manifest.provider or default_provider(self.target)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Artifact:
        """Reads and checks the folder.

        Args:
            path: the artifact folder.
            verify: compare every file with the manifest's sha256; reads all weights once.

        Raises:
            ArtifactError: the folder is not an artifact, is damaged, refers to files outside itself, or contains
                settings or operators that do more than compute.
        """
        folder = _require_artifact_folder(Path(path))
        data, manifest = strict_json.read_bytes(locate_file(folder, CONFIG)), None
        config = _check_config(folder / CONFIG, strict_json.parse(data, folder / CONFIG))
        if (folder / MANIFEST).exists():
            locate_file(folder, MANIFEST)
            manifest = Manifest.read(folder)
        artifact = cls._build(folder, config, manifest)
        locate_file(folder, TOKENIZER)  # the code that uses it checks its content, so that opening stays quick
        if verify:
            verify_checksums(folder, manifest)
            assert manifest is not None
            _require_listed(folder, manifest, {CONFIG: _sha256(data), artifact.graph.name: artifact.graph.sha256})
        return artifact

    def graph_bytes(self) -> bytes:
        """Returns exactly the bytes of the graph that were checked.

        Raises:
            ArtifactError: the file has changed since the check.
        """
        data = _read(locate_file(self.path, self.graph.name))
        if _sha256(data) != self.graph.sha256:
            raise _changed_error(self.path / self.graph.name)
        return data

    def require_unchanged(self) -> None:
        """Checks, after loading, that the weight files are still the ones that were checked.

        Raises:
            ArtifactError: a file has been replaced or modified since the check.
        """
        for name, stamp in self.graph.weights.items():
            if _stamp(locate_file(self.path, name)) != stamp:
                raise _changed_error(self.path / name)

    @classmethod
    def _build(cls, folder: Path, config: dict[str, Any], manifest: Manifest | None) -> Artifact:
        model = config.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("decoder"), dict):
            raise ArtifactError(f"{folder / CONFIG} has no model.decoder", remedy=_RECONVERT)
        eos = model.get("eos_token_id", [])
        eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
        vocab_size = _read_positive(folder, model, "vocab_size")
        for token in eos_ids:
            if not 0 <= token < vocab_size:
                raise ArtifactError(
                    f"{folder / CONFIG}: eos_token_id {token!r} is not in the vocabulary of {vocab_size:,} tokens",
                    remedy=_RECONVERT,
                )
        return cls(
            path=folder,
            name=manifest.name if manifest else folder.name,
            target=manifest.target if manifest else "unknown",
            context_length=_read_positive(folder, model, "context_length"),
            vocab_size=vocab_size,
            eos_token_ids=eos_ids,
            bos_token_id=model.get("bos_token_id"),
            config=config,
            graph=check_graph(folder, model["decoder"].get("filename", "")),
            manifest=manifest,
        )


def locate_file(folder: Path, name: str) -> Path:
    """Returns the path of a file in an artifact folder.

    Raises:
        ArtifactError: the name points outside the folder (``..``, an absolute path, a drive, a device, a stream, a
            symlink), or the file does not exist.
    """
    if not is_safe_path(name):
        raise ArtifactError(
            f"{folder} refers to a file outside itself: {name!r}",
            remedy="Do not load it: an artifact keeps all its files in its own folder.",
        )
    path = folder / name
    if path.is_file() and not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{path} is a link to a file outside the folder",
            remedy="Copy the file itself into the folder if you trust it.",
        )
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", remedy=_RECONVERT)
    return path


def verify_checksums(folder: Path, manifest: Manifest | None) -> None:
    """Compares the sha256 of every file with the manifest.

    Raises:
        ArtifactError: there is no manifest, or a file is missing or different.
    """
    if manifest is None:
        raise ArtifactError(
            f"{folder} has no {MANIFEST} to compare its files with", remedy="Convert with gptoss to get a manifest."
        )
    for name, entry in manifest.files.items():
        if FileEntry.from_file(locate_file(folder, name)).sha256 != entry.sha256:
            raise ArtifactError(f"{folder / name} differs from the manifest (sha256)", remedy=_RECONVERT)


def _require_artifact_folder(path: Path) -> Path:
    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist", remedy="Create an artifact with: gptoss convert CHECKPOINT -o DIR"
        )
    if not path.is_dir() or not (path / CONFIG).exists():
        remedy = "Name the folder that contains genai_config.json."
        if (path / "config.json").exists():
            remedy = f"This is a checkpoint; convert it first: gptoss convert {path} -o DIR"
        raise ArtifactError(f"{path} is not an artifact folder", remedy=remedy)
    return path.resolve()


def check_graph(folder: Path, name: str) -> Graph:
    """Checks a graph and the external data files that it refers to.

    Args:
        folder: the artifact folder.
        name: path of the graph's file in it.

    Raises:
        ArtifactError: a file is missing, outside the folder or too short, or the graph can do more than compute.
    """
    path = locate_file(folder, name)
    data = _read(path)
    parent = PurePosixPath(name).parent
    weights: dict[str, Stamp] = {}
    for span in check_onnx(path, data):
        location = str(parent / span.location) if span.location else ""
        if location not in weights:
            weights[location] = _stamp(locate_file(folder, location))
        if span.offset < 0 or span.length < 0 or span.offset + span.length > weights[location][2]:
            raise ArtifactError(f"{folder / location} is truncated", remedy=_RECONVERT)
    return Graph(name, _sha256(data), weights)


def check_onnx(path: Path, data: bytes) -> frozenset[ExternalSpan]:
    """Checks a graph's bytes without its external data.

    Returns:
        The external data that it refers to.

    Raises:
        ArtifactError: it is not a readable ONNX file, or it can do more than compute.
    """
    try:
        return find_external_data(data)
    except GraphError as error:
        raise ArtifactError(f"{path} is unsafe: {error}", remedy=_DISTRUST) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not a readable ONNX file: {error}", remedy=_RECONVERT) from error


def check_contents(folder: Path) -> None:
    """Checks every JSON file and graph in a folder, including files that this package never loads; needs no weights.

    For a folder that is still incomplete (a pull in progress), or before it is published.

    Raises:
        ArtifactError: as ``Artifact.open``.
    """
    from gptoss_runtime.artifact.reference_logits import ReferenceLogits  # imports numpy

    ReferenceLogits.read(folder)
    for path in sorted(folder.rglob("*.json")):
        data = strict_json.read_bytes(locate_file(folder, path.relative_to(folder).as_posix()))
        if path.name == CONFIG:
            _check_config(path, strict_json.parse(data, path))
        else:
            strict_json.parse_value(data, path)
    for path in sorted(folder.rglob("*.onnx")):
        check_onnx(path, _read(locate_file(folder, path.relative_to(folder).as_posix())))


def _check_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration if it contains only allowed keys and values."""
    found = genai_config.find_problems(config)
    if not found:
        return config
    text = "; ".join(f"{one.key!r} {one.reason}" for one in found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    effects = "".join(f"\nFor {one.key!r} they would {one.effect}." for one in found[:5] if one.effect)
    raise ArtifactError(f"{path}: {text}{more}", remedy=f"{_DISTRUST}{effects}" if effects else _REMOVE_KEY)


def _require_listed(folder: Path, manifest: Manifest, digests: Mapping[str, str]) -> None:
    """Checks that the bytes read earlier are those the manifest lists: the folder may have changed in between."""
    for name, sha256 in digests.items():
        if name in manifest.files and manifest.files[name].sha256 != sha256:
            raise _changed_error(folder / name)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= _MAX_GRAPH:
                return file.read()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", remedy=_RECONVERT) from error
    raise ArtifactError(f"{path} is larger than the 2 GB that an ONNX file can have", remedy=_RECONVERT)


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _changed_error(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} changed while it was being loaded", remedy="Load it again.")


def _read_positive(folder: Path, model: dict[str, Any], key: str) -> int:
    value = model.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"{folder / CONFIG}: model.{key} is {value!r}, not a positive integer", remedy=_RECONVERT)
    return value
