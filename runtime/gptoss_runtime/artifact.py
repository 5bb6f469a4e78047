"""Opens an artifact folder and refuses a damaged or unsafe one before anything native reads it.

Knows the files of the folder and what genai_config.json promises; knows nothing of execution providers, and reads no
weights (unless ``verify`` asks for every file's sha256).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gptoss_runtime.errors import ArtifactError
from gptoss_runtime.external_data import external_spans
from gptoss_runtime.manifest import MANIFEST, FileEntry, Manifest
from gptoss_runtime.names import is_safe_path

CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
_MAX_JSON_BYTES = 64 * 2**20  # gpt-oss's tokenizer.json has 27 MB
_RECONVERT = "Convert the checkpoint again, or copy the whole folder again."


def provider_of(target: str) -> str:
    """The execution provider of a target: "cpu" of "cpu-int4"."""
    return target.partition("-")[0]


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
        config: genai_config.json.
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
            ArtifactError: the folder is not an artifact, is damaged, or refers to files outside itself.
        """
        folder = _folder(Path(path))
        config, manifest = read_json(inside(folder, CONFIG)), None
        if (folder / MANIFEST).exists():
            inside(folder, MANIFEST)
            manifest = Manifest.read(folder)
        artifact = cls._described(folder, config, manifest)
        _check_graphs(folder, config)
        inside(folder, TOKENIZER)  # its content is checked where it is used, so that opening stays quick
        if verify:
            verify_checksums(folder, manifest)
        return artifact

    @classmethod
    def _described(cls, folder: Path, config: dict[str, Any], manifest: Manifest | None) -> Artifact:
        model = config.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("decoder"), dict):
            raise ArtifactError(f"{folder / CONFIG} has no model.decoder", remedy=_RECONVERT)
        eos = model.get("eos_token_id", [])
        eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
        vocab_size = _positive(folder, model, "vocab_size")
        for token in eos_ids:
            if not isinstance(token, int) or not 0 <= token < vocab_size:
                raise ArtifactError(f"{folder / CONFIG}: eos_token_id {token!r} is no id", remedy=_RECONVERT)
        bos = model.get("bos_token_id")
        return cls(
            path=folder,
            name=manifest.name if manifest else folder.name,
            target=manifest.target if manifest else "unknown",
            context_length=_positive(folder, model, "context_length"),
            vocab_size=vocab_size,
            eos_token_ids=eos_ids,
            bos_token_id=bos if isinstance(bos, int) else None,
            config=config,
            manifest=manifest,
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ArtifactError: missing, unreadable, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ArtifactError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MB", remedy=_RECONVERT)
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", remedy=_RECONVERT) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}", remedy=_RECONVERT) from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} does not hold a JSON object", remedy=_RECONVERT)
    return value


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


def _positive(folder: Path, model: dict[str, Any], key: str) -> int:
    value = model.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"{folder / CONFIG}: model.{key} is {value!r}", remedy=_RECONVERT)
    return value


def _check_graphs(folder: Path, config: dict[str, Any]) -> None:
    """Every graph that the config names, and every external file that a graph names, is here and long enough."""
    for name in sorted(_filenames(config["model"])):
        graph = inside(folder, name)
        try:
            spans = external_spans(graph)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{graph} is not a readable ONNX file: {error}", remedy=_RECONVERT) from error
        relative = PurePosixPath(name).parent
        sizes: dict[str, int] = {}
        for span in spans:
            if span.location not in sizes:
                name = str(relative / span.location) if span.location else ""
                sizes[span.location] = inside(folder, name).stat().st_size
            if span.offset < 0 or span.length < 0 or span.offset + span.length > sizes[span.location]:
                raise ArtifactError(f"{folder / relative / span.location} is truncated", remedy=_RECONVERT)


def _filenames(node: object) -> set[str]:
    """The values of every "filename" key: the decoder's, or those of a pipeline's stages."""
    if isinstance(node, dict):
        own = {str(node["filename"])} if "filename" in node else set()
        return own.union(*(_filenames(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_filenames(value) for value in node))
    return set()
