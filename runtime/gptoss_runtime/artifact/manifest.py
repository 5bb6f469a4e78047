"""manifest.json: the description of an artifact; the schema that the converter writes and the runtime reads.

Contains no time, machine name or absolute path, so that the same conversion gives the same bytes. Only ``parity`` is
added later, by ``gptoss parity --record``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.errors import ArtifactError

MANIFEST = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
_Sha256 = Field(pattern="^[0-9a-f]{64}$")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a later minor version can have more fields


class FileEntry(_Part):
    """A file's size in bytes and its sha256."""

    size: int = Field(ge=0)
    sha256: str = _Sha256

    @classmethod
    def from_file(cls, file: Path) -> FileEntry:
        """Describes a file; reads all of it."""
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(size=file.stat().st_size, sha256=digest)


class Source(_Part):
    """The checkpoint: its name, its revision (the commit, if the folder records one) and every file that was used."""

    name: str
    revision: str | None
    files: dict[str, FileEntry]


class TensorGroup(_Part):
    """How one group of tensors is stored.

    Attributes:
        scheme: the storage format, such as "mxfp4", "int8 block 32", "float".
        tensors: number of initializers.
        nbytes: their size in the external data file.
        snr_db: signal-to-noise ratio of the stored values in dB; None if they equal the checkpoint's.
        max_error: largest absolute difference from a checkpoint value.
    """

    scheme: str
    tensors: int
    nbytes: int
    snr_db: float | None
    max_error: float


class MemoryBudget(_Part):
    """Bytes of memory needed to run.

    Attributes:
        weights: all weights; memory-mapped weights count in full.
        kv_per_token: KV cache of one token in all layers.
        context: the context length, in tokens, that ``peak`` is for.
        peak: weights, KV cache at ``context``, and activations of one chunk of a prompt.
        work_per_token: the part of the activations that grows with each token of context: scores and masks.
    """

    weights: int
    kv_per_token: int
    context: int
    peak: int
    work_per_token: int = 0

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the context length."""
        return self.peak - self.context * (self.kv_per_token + self.work_per_token)

    def at(self, context: int) -> int:
        """Returns the bytes needed at a context length, in tokens."""
        return self.fixed + context * (self.kv_per_token + self.work_per_token)

    def largest_context(self, memory: int) -> int:
        """Returns the longest context length, in tokens, that fits in ``memory`` bytes; 0 if none does."""
        return max(0, (memory - self.fixed) // max(1, self.kv_per_token + self.work_per_token))


class LayerRange(_Part):
    """The magnitude of activations in one layer.

    Attributes:
        layer: the layer's index; for the head, the number of layers.
        stream: largest magnitude of the residual stream after the layer.
        headroom: log2 of float16's limit over the largest float16 activation; None in a float32 graph.
        tightest: the name of that activation.
    """

    layer: int
    stream: float
    headroom: float | None = None
    tightest: str | None = None


class Range(_Part):
    """The magnitude of activations in the converter's first run, on the CPU.

    Attributes:
        dtype: float type of matrix products, attention and caches; the residual stream is float32.
        tokens: length of the prompt.
        embedding: largest magnitude of the residual stream before the first layer.
        layers: one entry per layer.
        head: the final norm and the logits.
    """

    dtype: Literal["float16", "bfloat16", "float32"]
    tokens: int
    embedding: float
    layers: list[LayerRange] = Field(min_length=1)
    head: LayerRange

    @property
    def widest(self) -> LayerRange:
        """The layer after which the residual stream is largest."""
        return max(self.layers, key=lambda layer: layer.stream)

    @property
    def tightest(self) -> LayerRange | None:
        """The layer, or head, with the least headroom; None in a float32 graph."""
        limited = [layer for layer in (*self.layers, self.head) if layer.headroom is not None]
        return min(limited, key=lambda layer: layer.headroom or 0.0, default=None)


class Parity(_Part):
    """The result of comparing the artifact's logits with a reference model's.

    Attributes:
        reference: the reference model.
        tokens: number of positions compared.
        max_abs: largest absolute difference of a logit.
        mean_kl: mean Kullback-Leibler divergence from the reference, in nats.
        top1: fraction of positions with the same most likely token.
    """

    reference: str
    tokens: int
    max_abs: float
    mean_kl: float
    top1: float


class Manifest(_Part):
    """An artifact's manifest.

    Attributes:
        schema_version: version of this schema.
        name: name of the model.
        target: the target it was converted for.
        provider: the execution provider; None (and then omitted from the file): the prefix of the target's name, as
            "cpu" of "cpu-int4".
        preset: the quantisation preset.
        logits: which logits the graph returns: "last", of the last position, or "all", of every position.
        requires: version specifiers of the packages that run it.
        source: the checkpoint.
        groups: how each group of tensors is stored.
        memory: memory needed to run.
        range: magnitude of activations; None if the converter did not run the model.
        tools: versions of the tools that made the artifact.
        files: every file of the folder except this one.
        parity: the last recorded comparison, or None.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    target: str
    provider: str | None = None
    preset: str
    logits: Literal["last", "all"]
    requires: dict[str, str]
    source: Source
    groups: dict[str, TensorGroup]
    memory: MemoryBudget
    range: Range | None = None
    tools: dict[str, str]
    files: dict[str, FileEntry]
    parity: Parity | None = None

    @model_serializer(mode="wrap")
    def _omit_provider(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        if self.provider is None:
            content.pop("provider", None)
        return content

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads the manifest of an artifact folder.

        Raises:
            ArtifactError: missing, malformed, or from a newer schema.
        """
        file = folder / MANIFEST
        try:
            return cls.model_validate(strict_json.parse(file.read_bytes(), file))
        except OSError as error:
            raise ArtifactError(
                f"{file} cannot be read: {error.strerror or error}", remedy="Convert with gptoss to get a manifest."
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            remedy = "Convert the checkpoint again."
            if at == "schema_version":
                remedy = "A newer gptoss-windows made this artifact: upgrade gptoss-windows."
            raise ArtifactError(f"{file}: {at}: {first['msg']}", remedy=remedy) from error

    def to_bytes(self) -> bytes:
        """Returns the file's content: JSON with an indent of two, in the schema's order, ending in a newline."""
        return (self.model_dump_json(indent=2) + "\n").encode()
