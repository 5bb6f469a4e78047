"""manifest.json: what an artifact says of itself; the schema that the converter writes and the runtime reads.

Knows names, types and the file's form on disk. Holds no time, machine or absolute path, so that the same conversion is
the same bytes. Parity is the one part added later, by ``gptoss parity --record``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.errors import ArtifactError

MANIFEST = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
_Sha256 = Field(pattern="^[0-9a-f]{64}$")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a later minor version may say more


class FileEntry(_Part):
    """A file's size in bytes and its sha256."""

    size: int = Field(ge=0)
    sha256: str = _Sha256

    @classmethod
    def of(cls, file: Path) -> FileEntry:
        """Of a file as it is; reads all of it."""
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(size=file.stat().st_size, sha256=digest)


class Source(_Part):
    """The checkpoint: name, revision (a commit, where the folder tells) and every file that was used."""

    name: str
    revision: str | None
    files: dict[str, FileEntry]


class TensorGroup(_Part):
    """How one group of tensors is stored.

    Attributes:
        scheme: such as "mxfp4", "int8 block 32", "float".
        tensors: initializers.
        nbytes: their size in the external data file.
        snr_db: signal to noise of the stored values in dB; None where they are the checkpoint's exactly.
        max_error: largest difference from the checkpoint's value.
    """

    scheme: str
    tensors: int
    nbytes: int
    snr_db: float | None
    max_error: float


class MemoryBudget(_Part):
    """Bytes needed to run.

    Attributes:
        weights: all weights; those read in place from a mapped file count in full.
        kv_per_token: keys and values of one position in all layers.
        context: positions that ``peak`` is for.
        peak: weights, keys and values at ``context``, and activations of one piece of a prompt.
        work_per_token: of those activations, what a position of context adds: scores and masks.
    """

    weights: int
    kv_per_token: int
    context: int
    peak: int
    work_per_token: int = 0

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the context."""
        return self.peak - self.context * (self.kv_per_token + self.work_per_token)

    def at(self, context: int) -> int:
        """Bytes needed at a context length."""
        return self.fixed + context * (self.kv_per_token + self.work_per_token)

    def largest_context(self, memory: int) -> int:
        """The longest context for which ``memory`` bytes suffice, 0 if there is none."""
        return max(0, (memory - self.fixed) // max(1, self.kv_per_token + self.work_per_token))


class LayerRange(_Part):
    """How large values get in one layer.

    Attributes:
        layer: its number; the number of layers for the head.
        stream: largest magnitude of the residual stream after it.
        headroom: binary orders of magnitude from the largest float16 value to float16's limit; None in a float32 graph.
        tightest: which value that is.
    """

    layer: int
    stream: float
    headroom: float | None = None
    tightest: str | None = None


class Range(_Part):
    """How large values got in the first run, on the CPU.

    Attributes:
        dtype: float type of matrix products, attention and caches; the residual stream is float32.
        tokens: of the prompt.
        embedding: largest magnitude of the stream before the first layer.
        layers: one entry a layer.
        head: the last norm and the logits.
    """

    dtype: Literal["float16", "bfloat16", "float32"]
    tokens: int
    embedding: float
    layers: list[LayerRange] = Field(min_length=1)
    head: LayerRange

    @property
    def widest(self) -> LayerRange:
        """The layer after which the stream is largest."""
        return max(self.layers, key=lambda layer: layer.stream)

    @property
    def tightest(self) -> LayerRange | None:
        """The layer with the least headroom; None in a float32 graph."""
        limited = [layer for layer in (*self.layers, self.head) if layer.headroom is not None]
        return min(limited, key=lambda layer: layer.headroom or 0.0, default=None)


class Parity(_Part):
    """How the artifact's logits compare with a reference's.

    Attributes:
        reference: what it was compared with.
        tokens: positions compared.
        max_abs: largest absolute difference of a logit.
        mean_kl: mean Kullback-Leibler divergence from the reference, nats.
        top1: share of positions with the same most likely token.
    """

    reference: str
    tokens: int
    max_abs: float
    mean_kl: float
    top1: float


class Manifest(_Part):
    """An artifact's manifest.

    Attributes:
        schema_version: of this schema.
        name: what to call the model.
        target: what it was converted for.
        preset: the quantisation preset that ``groups`` came from.
        logits: "last": of the last position only; "all": of every position.
        requires: packages that run it, with version specifiers.
        source: the checkpoint.
        groups: how each group of tensors is stored.
        memory: bytes needed to run.
        range: how large activations get; None where the model was not run layer by layer.
        tools: versions of what made it.
        files: every file of the folder but this one.
        parity: the last recorded comparison, if there was one.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    target: str
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

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of an artifact folder.

        Raises:
            ArtifactError: missing, malformed, or of a newer schema.
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
                remedy = "A newer gptoss-windows made this artifact: upgrade this one."
            raise ArtifactError(f"{file}: {at}: {first['msg']}", remedy=remedy) from error

    def to_bytes(self) -> bytes:
        """The file's content: JSON, two spaces, in the schema's order, ending in a newline."""
        return (self.model_dump_json(indent=2) + "\n").encode()
