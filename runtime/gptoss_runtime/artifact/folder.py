"""Opens an artifact folder and refuses a damaged or unsafe one before anything native reads it.

An artifact is data: nothing in it is run, and what is loaded is what was checked. Knows the files of the folder and
what genai_config.json promises; knows nothing of execution providers, and reads no weights (unless ``verify`` asks for
every file's sha256).
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
from gptoss_runtime.artifact.onnx_file import ExternalSpan, GraphError, external_spans
from gptoss_runtime.artifact.safe_names import is_safe_path
from gptoss_runtime.errors import ArtifactError

CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
_MAX_GRAPH = 2**31 - 1  # protobuf's limit
Stamp = tuple[int, int, int, int]  # of a file: device, number, bytes, time of change
_RECONVERT = "Convert the checkpoint again, or copy the whole folder again."
_TAKE_OUT = "Take it out if the model does without, or convert the checkpoint again."
_DISTRUST = "Do not use it: onnxruntime-genai and Foundry Local would load it as it stands."


def provider_of(target: str) -> str:
    """The execution provider of a target: "cpu" of "cpu-int4"."""
    return target.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Graph:
    """The graph of an artifact, as it was when it was checked.

    Attributes:
        name: its file in the folder, with "/" between the parts.
        sha256: of its bytes.
        weights: the files of its external data, by name in the folder.
    """

    name: str
    sha256: str
    weights: Mapping[str, Stamp]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact folder that was found whole.

    Args:
        path: the folder, absolute.
        name: what to call the model: the manifest's name, or the folder's.
        target: what it was converted for, or "unknown" without a manifest.
        context_length: positions.
        vocab_size: rows of the logits.
        eos_token_ids: stop tokens.
        bos_token_id: the document start token, or None.
        config: genai_config.json, of which nothing is refused.
        graph: what of the graph was checked.
        manifest: manifest.json, or None where there is none (a stock conversion).
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
        """The execution provider it was converted for; the CPU where nothing says."""
        return "cpu" if self.manifest is None else provider_of(self.target)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Artifact:
        """Reads and checks the folder.

        Args:
            path: the artifact folder.
            verify: check every file against the manifest's sha256; reads all weights once.

        Raises:
            ArtifactError: the folder is not an artifact, is damaged, refers to files outside itself, or says what would
                have a program do more than compute.
        """
        folder = _folder(Path(path))
        data, manifest = strict_json.read_bytes(inside(folder, CONFIG)), None
        config = _checked(folder / CONFIG, strict_json.parse(data, folder / CONFIG))
        if (folder / MANIFEST).exists():
            inside(folder, MANIFEST)
            manifest = Manifest.read(folder)
        artifact = cls._described(folder, config, manifest)
        inside(folder, TOKENIZER)  # its content is checked where it is used, so that opening stays quick
        if verify:
            verify_checksums(folder, manifest)
            assert manifest is not None
            _require_listed(folder, manifest, {CONFIG: _sha256(data), artifact.graph.name: artifact.graph.sha256})
        return artifact

    def graph_bytes(self) -> bytes:
        """The graph's bytes: the very ones that were checked.

        Raises:
            ArtifactError: the file has changed since.
        """
        data = _read(inside(self.path, self.graph.name))
        if _sha256(data) != self.graph.sha256:
            raise _changed(self.path / self.graph.name)
        return data

    def require_unchanged(self) -> None:
        """Checks, after loading, that the weights that were read are the files that were checked.

        Raises:
            ArtifactError: one has been replaced or written to since.
        """
        for name, stamp in self.graph.weights.items():
            if _stamp(inside(self.path, name)) != stamp:
                raise _changed(self.path / name)

    @classmethod
    def _described(cls, folder: Path, config: dict[str, Any], manifest: Manifest | None) -> Artifact:
        model = config.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("decoder"), dict):
            raise ArtifactError(f"{folder / CONFIG} has no model.decoder", remedy=_RECONVERT)
        eos = model.get("eos_token_id", [])
        eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
        vocab_size = _positive(folder, model, "vocab_size")
        for token in eos_ids:
            if not 0 <= token < vocab_size:
                raise ArtifactError(f"{folder / CONFIG}: eos_token_id {token!r} is no id", remedy=_RECONVERT)
        return cls(
            path=folder,
            name=manifest.name if manifest else folder.name,
            target=manifest.target if manifest else "unknown",
            context_length=_positive(folder, model, "context_length"),
            vocab_size=vocab_size,
            eos_token_ids=eos_ids,
            bos_token_id=model.get("bos_token_id"),
            config=config,
            graph=check_graph(folder, model["decoder"].get("filename", "")),
            manifest=manifest,
        )


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of an artifact folder.

    Raises:
        ArtifactError: the name leads out of the folder (``..``, absolute, a drive, a device, a stream, a symlink), or
            there is no file.
    """
    if not is_safe_path(name):
        raise ArtifactError(
            f"{folder} refers to a file outside itself: {name!r}",
            remedy="Do not load it: an artifact keeps all its files in its own folder.",
        )
    path = folder / name
    if path.is_file() and not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{path} is a link that leads out of the folder",
            remedy="Copy the file itself into the folder if you trust it.",
        )
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", remedy=_RECONVERT)
    return path


def verify_checksums(folder: Path, manifest: Manifest | None) -> None:
    """Compares every file that the manifest lists with its sha256.

    Raises:
        ArtifactError: there is no manifest, or a file is missing or different.
    """
    if manifest is None:
        raise ArtifactError(
            f"{folder} has no {MANIFEST} that lists its files", remedy="Convert with gptoss to get a manifest."
        )
    for name, entry in manifest.files.items():
        if FileEntry.of(inside(folder, name)).sha256 != entry.sha256:
            raise ArtifactError(f"{folder / name} is not the file the manifest lists", remedy=_RECONVERT)


def _folder(path: Path) -> Path:
    if not path.exists():
        raise ArtifactError(f"{path} does not exist", remedy="Make an artifact with: gptoss convert CHECKPOINT -o DIR")
    if not path.is_dir() or not (path / CONFIG).exists():
        remedy = "Name the folder that holds genai_config.json."
        if (path / "config.json").exists():
            remedy = f"This is a checkpoint; convert it first: gptoss convert {path} -o DIR"
        raise ArtifactError(f"{path} is not an artifact folder", remedy=remedy)
    return path.resolve()


def check_graph(folder: Path, name: str) -> Graph:
    """Checks a graph of a folder, and that every file that it names is there and long enough.

    Args:
        folder: the artifact folder.
        name: the graph's file in it.

    Raises:
        ArtifactError: a file is missing, outside the folder or too short, or the graph is more than arithmetic.
    """
    path = inside(folder, name)
    data = _read(path)
    parent = PurePosixPath(name).parent
    weights: dict[str, Stamp] = {}
    for span in check_onnx(path, data):
        location = str(parent / span.location) if span.location else ""
        if location not in weights:
            weights[location] = _stamp(inside(folder, location))
        if span.offset < 0 or span.length < 0 or span.offset + span.length > weights[location][2]:
            raise ArtifactError(f"{folder / location} is truncated", remedy=_RECONVERT)
    return Graph(name, _sha256(data), weights)


def check_onnx(path: Path, data: bytes) -> frozenset[ExternalSpan]:
    """Checks a graph's bytes alone.

    Returns:
        The external data that it names.

    Raises:
        ArtifactError: it is no readable ONNX file, or more than arithmetic.
    """
    try:
        return external_spans(data)
    except GraphError as error:
        raise ArtifactError(f"{path} is not loaded: {error}", remedy=_DISTRUST) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not a readable ONNX file: {error}", remedy=_RECONVERT) from error


def check_contents(folder: Path) -> None:
    """Checks what of an artifact is here, as far as it can be without the weights: every configuration and graph.

    For a folder that is not whole yet, or that is to be judged as a whole: also what this package never reads.

    Raises:
        ArtifactError: as ``Artifact.open``.
    """
    from gptoss_runtime.artifact.reference_logits import ReferenceLogits  # which imports numpy

    ReferenceLogits.read(folder)
    for path in sorted(folder.rglob("*.json")):
        data = strict_json.read_bytes(inside(folder, path.relative_to(folder).as_posix()))
        if path.name == CONFIG:
            _checked(path, strict_json.parse(data, path))
        else:
            strict_json.value_of(data, path)
    for path in sorted(folder.rglob("*.onnx")):
        check_onnx(path, _read(inside(folder, path.relative_to(folder).as_posix())))


def _checked(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which nothing is refused."""
    found = genai_config.problems(config)
    if not found:
        return config
    text = "; ".join(f"{one.key!r} {one.why}" for one in found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    acts = "".join(f"\nFor {one.key!r} they would {one.elsewhere}." for one in found[:5] if one.elsewhere)
    raise ArtifactError(f"{path}: {text}{more}", remedy=f"{_DISTRUST}{acts}" if acts else _TAKE_OUT)


def _require_listed(folder: Path, manifest: Manifest, read: Mapping[str, str]) -> None:
    """Whether what was read before is what the manifest lists too: a folder may change in between."""
    for name, sha256 in read.items():
        if name in manifest.files and manifest.files[name].sha256 != sha256:
            raise _changed(folder / name)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= _MAX_GRAPH:
                return file.read()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", remedy=_RECONVERT) from error
    raise ArtifactError(f"{path} is larger than an ONNX file can be", remedy=_RECONVERT)


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _changed(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} changed while it was being loaded", remedy="Load it again.")


def _positive(folder: Path, model: dict[str, Any], key: str) -> int:
    value = model.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"{folder / CONFIG}: model.{key} is {value!r}", remedy=_RECONVERT)
    return value
