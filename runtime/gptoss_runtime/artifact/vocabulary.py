"""Rebuilds openai-harmony's vocabulary file from an artifact's tokenizer.json, so that harmony downloads nothing.

Both contain the same 199,998 byte strings: tokenizer.json as keys in GPT-2's byte-to-Unicode alphabet, the
``.tiktoken`` file in base64, ordered by rank. Knows the two file formats; knows nothing of harmony.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.errors import ArtifactError, ResourceError
from gptoss_runtime.harmony_tokens import FORMAT_TOKENS

FILE_NAME = "o200k_base.tiktoken"
SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_REMEDY = "Use a tokenizer.json of gpt-oss (o200k_harmony), unchanged."


def build_vocabulary_folder(tokenizer: Path, *, cache: Path | None = None) -> Path:
    """Returns a folder with ``o200k_base.tiktoken`` for this tokenizer; builds it on first use, checks it on every use.

    Args:
        tokenizer: the artifact's tokenizer.json.
        cache: where to keep these folders; ``None``: the user's cache.

    Raises:
        ArtifactError: the tokenizer is missing, damaged or has another vocabulary.
        ResourceError: the cache cannot be written.
    """
    try:
        with tokenizer.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{tokenizer} cannot be read: {error.strerror or error}", remedy=_REMEDY) from error
    root = cache or Path(platformdirs.user_cache_dir("gptoss", appauthor=False)) / "vocabulary"
    folder = root / digest[:32]
    if not _is_whole(folder / FILE_NAME):
        _write(folder / FILE_NAME, build_tiktoken_file(tokenizer))
    return folder


def build_tiktoken_file(tokenizer: Path) -> bytes:
    """Returns the content of ``o200k_base.tiktoken``, built from tokenizer.json.

    Raises:
        ArtifactError: this is not the tokenizer of o200k_harmony.
    """
    content = strict_json.read(tokenizer)
    try:
        vocabulary: dict[str, int] = content["model"]["vocab"]
        specials = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        by_rank = sorted((rank, token) for token, rank in vocabulary.items() if token not in specials)
        alphabet = unicode_to_bytes()
        lines = [
            b"%s %d\n" % (base64.b64encode(token.translate(alphabet).encode("latin-1")), rank)
            for rank, token in by_rank
        ]
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise ArtifactError(f"{tokenizer} is not a byte-level BPE tokenizer: {error!r}", remedy=_REMEDY) from error
    data = b"".join(lines)
    if hashlib.sha256(data).hexdigest() != SHA256 or any(
        specials.get(text) != token for text, token in FORMAT_TOKENS.items()
    ):
        raise ArtifactError(f"{tokenizer} is not the tokenizer of gpt-oss", remedy=_REMEDY)
    return data


def unicode_to_bytes() -> dict[int, int]:
    """Returns the inverse of GPT-2's ``bytes_to_unicode``: code point -> byte.

    Printable bytes have their own code point; the others have those from 256 up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: byte for byte in printable} | {256 + index: byte for index, byte in enumerate(others)}


def _is_whole(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    except OSError:
        return False


def _write(path: Path, data: bytes) -> None:
    """Writes atomically: another process sees either no file or the complete one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            if not _is_whole(path):  # on Windows, replacing fails while another process reads the same, complete file
                raise
    except OSError as error:
        raise ResourceError(
            f"the vocabulary cannot be written to {path.parent}: {error.strerror or error}",
            remedy="Free some disk space, or make the cache folder writable.",
        ) from error


@contextlib.contextmanager
def set_environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for the length of a ``with`` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
