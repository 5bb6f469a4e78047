"""The protocol of references, and reference logits in a file, to measure an artifact without its checkpoint.

The file is an uncompressed .npz: ``about`` (JSON as UTF-8 bytes), ``tokens`` int32 [tokens], ``ids`` int32 and
``logits`` float32 [tokens, k], the top k tokens in descending order, ``rest`` float64 [tokens], log-sum-exp of all
other logits, and optionally ``hidden_states`` float32 [layers + 1, positions, hidden] of the first sequence's first
positions. Types and shapes are checked against each other and against the file's size before memory is allocated; the
zip's checksums detect damage.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from gptoss_convert.artifact import source_name
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError, OutputError, ReferenceFileError
from gptoss_convert.parity.metrics import Distributions

_TYPES: dict[str, tuple[type[np.generic], int]] = {
    **{"about": (np.uint8, 1), "tokens": (np.int32, 1), "ids": (np.int32, 2), "logits": (np.float32, 2)},
    **{"rest": (np.float64, 1), "hidden_states": (np.float32, 3)},
}
_READ_ERRORS = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, struct.error, RuntimeError, NotImplementedError),
    *(SyntaxError, TypeError, OverflowError, MemoryError),
)
_Positive = Annotated[int, Field(gt=0, lt=1 << 31)]


class About(BaseModel):
    """Describes a reference: its checkpoint and its sequences.

    Attributes:
        version: of the file format.
        name: the checkpoint's name.
        revision: the checkpoint's commit, if its folder records it.
        config_sha256: of its config.json.
        index_sha256: of its shards' index; None if there is no index.
        vocab_size: size of its vocabulary.
        text: a description of the sequences.
        lengths: tokens in each sequence.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    version: Literal[1] = 1
    name: str
    revision: str | None
    config_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    index_sha256: str | None = Field(pattern="^[0-9a-f]{64}$")
    vocab_size: _Positive
    text: str
    lengths: tuple[_Positive, ...] = Field(min_length=1)

    @classmethod
    def of(cls, checkpoint: Checkpoint, text: str, token_ids: Sequence[Sequence[int]]) -> About:
        """Describes a checkpoint and sequences.

        Raises:
            CheckpointError: its config.json or index cannot be read.
        """
        name, revision = source_name(checkpoint.path)
        index = checkpoint.path / "model.safetensors.index.json"
        try:
            config = hashlib.sha256((checkpoint.path / "config.json").read_bytes()).hexdigest()
            listed = hashlib.sha256(index.read_bytes()).hexdigest() if index.exists() else None
        except OSError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}", remedy="Download it again.") from error
        return cls(
            name=name,
            revision=revision,
            config_sha256=config,
            index_sha256=listed,
            vocab_size=checkpoint.config.vocab_size,
            text=text,
            lengths=tuple(map(len, token_ids)),
        )


class Reference(Protocol):
    """What an artifact is compared with: a checkpoint's next-token distributions on some sequences."""

    @property
    def about(self) -> About:
        """Its checkpoint and sequences."""

    @property
    def token_ids(self) -> list[list[int]]:
        """The sequences."""

    @property
    def hidden_states(self) -> NDArray[np.float32] | None:
        """The residual stream after 0 to N layers, float32 [layers + 1, positions, hidden].

        Covers the first positions of the first sequence; None if not available.
        """

    def distributions_at(self, where: Sequence[tuple[int, int]]) -> Distributions:
        """Next-token distributions at these positions, each given as (sequence, position in the sequence)."""


@dataclass(frozen=True, eq=False)
class SavedReference:
    """A :class:`Reference` that can be written to a file and read from one.

    Attributes:
        about: its checkpoint and sequences.
        tokens: int32 [tokens], all sequences concatenated.
        distributions: the top k tokens at every position.
        hidden_states: see :class:`Reference`.
    """

    about: About
    tokens: NDArray[np.int32]
    distributions: Distributions
    hidden_states: NDArray[np.float32] | None = None

    @property
    def token_ids(self) -> list[list[int]]:
        """The sequences."""
        bounds = accumulate(self.about.lengths, initial=0)
        return [self.tokens[start:end].tolist() for start, end in pairwise(bounds)]

    def distributions_at(self, where: Sequence[tuple[int, int]]) -> Distributions:
        """See :class:`Reference`."""
        starts = list(accumulate(self.about.lengths, initial=0))
        return self.distributions.take([starts[sequence] + position for sequence, position in where])

    def write(self, file: Path) -> None:
        """Writes a temporary file and renames it; the same reference gives the same bytes.

        Raises:
            OutputError: it cannot be written.
        """
        kept = self.distributions
        arrays: dict[str, NDArray[Any] | None] = {
            "about": np.frombuffer(self.about.model_dump_json().encode(), np.uint8),
            **{"tokens": self.tokens, "ids": kept.ids, "logits": kept.logits, "rest": kept.rest},
            "hidden_states": self.hidden_states,
        }
        new = file.with_name(file.name + ".new")
        try:
            try:
                with zipfile.ZipFile(new, "w") as archive:
                    for name, array in arrays.items():
                        if array is not None:
                            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                                np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0))
                new.replace(file)
            finally:
                new.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{file}: {error.strerror or error}") from error

    @classmethod
    def read(cls, file: Path) -> SavedReference:
        """Reads and validates a file.

        Raises:
            ReferenceFileError: the file cannot be read, is damaged, or is no reference.
        """
        try:
            with zipfile.ZipFile(file) as archive:
                names = [member.removesuffix(".npy") for member in archive.namelist()]
                # No checksum covers the zip's directory, where a damaged name or length would hide an optional array.
                if unknown := set(names) - _TYPES.keys():
                    raise ValueError(f"unknown arrays {sorted(unknown)}")
                if any(member.comment for member in archive.infolist()):
                    raise ValueError("the zip's directory has comments")
                parts = {name: _read(archive, name) for name in names}
            about = About.model_validate_json(parts.pop("about").tobytes())
            hidden_states = parts.pop("hidden_states", None)
            kept = Distributions(parts["logits"], parts["ids"], parts["rest"])
            read = cls(about, parts["tokens"], kept, hidden_states)
            read._check()
        except _READ_ERRORS as error:
            raise ReferenceFileError(
                f"{file}: not a readable reference: {' '.join(str(error).split())[:200] or type(error).__name__}",
                remedy="Copy the file again, or make it again with gptoss parity --save-reference.",
            ) from error
        return read

    def _check(self) -> None:
        ids, logits, rest = self.distributions.ids, self.distributions.logits, self.distributions.rest
        count, vocab = sum(self.about.lengths), self.about.vocab_size
        assert ids is not None
        assert rest is not None
        states = self.hidden_states
        wrong = {
            "shapes": not len(self.tokens) == len(ids) == len(logits) == len(rest) == count
            or ids.shape != logits.shape
            or not 0 < ids.shape[1] <= vocab,
            "token ids": any(part.size and (part.min() < 0 or part.max() >= vocab) for part in (self.tokens, ids)),
            "logits": not np.isfinite(logits).all() or not (np.diff(logits, axis=1) <= 0).all(),
            "the rest": bool((np.isnan(rest) | (rest == np.inf)).any()),
            "hidden states": states is not None
            and (min(states.shape) < 1 or states.shape[1] > self.about.lengths[0] or not np.isfinite(states).all()),
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(f"{what} are inconsistent")


def _read(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Reads one array and checks its type."""
    dtype, dimensions = _TYPES[name]
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    data = archive.read(info)
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is of another version of .npy")
    shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
    expected = np.dtype(dtype).newbyteorder("<")
    if found != expected or fortran or len(shape) != dimensions:
        raise ValueError(f"{name} is {found} {list(shape)}")
    if min(shape) < 0 or math.prod(shape) * expected.itemsize != len(data) - stream.tell():
        raise ValueError(f"{name} is {list(shape)} in {len(data)} bytes")
    array: NDArray[Any] = np.frombuffer(data, expected, offset=stream.tell()).reshape(shape)
    return array
