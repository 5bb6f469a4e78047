"""Grammars that what is generated has to match: llguidance, behind a mask over the vocabulary; its only user.

A grammar comes from a client, so everything it can cost is bounded: its length, what its JSON schemas may hold
(``json_schema``), and llguidance's own limits. Knows token ids and grammars; knows nothing of harmony or engines.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.artifact.vocabulary import byte_alphabet
from gptoss_runtime.engine.json_schema import check_bounds, embedded
from gptoss_runtime.errors import ArtifactError, BackendUnavailable, InvalidRequest

_EOS = "<|endoftext|>"  # stands for "the grammar may end here"; the generation's stop tokens take its place
_SCHEMA = re.compile(r"%json\s*")
# llguidance would tokenise text that is certain to come, special tokens parsed: "<|end|>" in a schema's enum would be
# the control token. So the model chooses how to spell it.
_BY_BYTES = '\n%llguidance { "no_forcing": true }\n'
_MAX_INTERSECTIONS = 16  # of regexes: the cost is exponential in them
_MAX_SAID = 600  # characters shown of what llguidance says
_load_lock = threading.Lock()


def _import_llguidance() -> ModuleType:
    """llguidance.

    Raises:
        BackendUnavailable: it is not installed, or its library does not load.
    """
    try:
        import llguidance
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"grammars need llguidance, which cannot be imported: {error}", remedy="pip install llguidance"
        ) from error
    return llguidance


class Constraint:
    """A grammar over one generation: which tokens may come next, told of each that came.

    Args:
        tokenizer: the artifact's tokenizer.json; it takes a second to read, once a process.
        grammar: in llguidance's Lark syntax.
        vocab_size: rows of the logits; those without a token are never allowed.
        stops: the generation's stop tokens, allowed where the grammar may end.

    Raises:
        InvalidRequest: the grammar is wrong, allows nothing, or costs too much.
        ArtifactError: the tokenizer cannot be read.
        BackendUnavailable: llguidance is not installed.
    """

    def __init__(self, tokenizer: Path, grammar: str, *, vocab_size: int, stops: Iterable[int]) -> None:
        llguidance = _import_llguidance()
        _check_costs(grammar)
        tokens, self._eos = _tokenizer(tokenizer.absolute())
        self._stops = np.fromiter((stop for stop in stops if stop < vocab_size), np.int64)
        self._vocab_size = vocab_size
        self._matcher = llguidance.LLMatcher(
            tokens, llguidance.LLMatcher.grammar_from_lark(grammar + _BY_BYTES), log_level=0, limits=_limits()
        )
        self._check()
        self._mask: NDArray[np.bool_] | None = None  # until a token is accepted
        self.allowed()

    def allowed(self) -> NDArray[np.bool_]:
        """The tokens that may come next, bool ``[vocab_size]``; not to be changed.

        Raises:
            InvalidRequest: the grammar became too costly to follow.
        """
        if self._mask is None:
            self._mask = self._computed()
        return self._mask

    @property
    def complete(self) -> bool:
        """Whether nothing may come any more, not even a stop token as there are none."""
        return not self.allowed().any()

    def accept(self, token: int) -> None:
        """Takes note of a token that ``allowed`` allowed, unless it is a stop token: that is no part of the grammar.

        Raises:
            InvalidRequest: the grammar became too costly to follow.
        """
        self._mask = None
        if not self._matcher.consume_token(token):
            self._check()

    def _computed(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        known = np.unpackbits(bits, bitorder="little")[: self._vocab_size].view(np.bool_)
        mask = np.pad(known, (0, self._vocab_size - known.size)) if known.size < self._vocab_size else known
        if mask[self._eos]:
            mask[self._eos] = False
            mask[self._stops] = True
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused("the grammar", self._matcher.get_error())


def check_schema(schema: object, *, what: str, lenient: bool) -> None:
    """Compiles a JSON schema over single bytes, which takes milliseconds and finds what is wrong with it.

    Args:
        schema: JSON values.
        what: its name in errors.
        lenient: as for ``json_schema.embedded``.

    Raises:
        InvalidRequest: it cannot be enforced, or costs too much.
        BackendUnavailable: llguidance is not installed.
    """
    try:
        check_bounds(schema)
    except InvalidRequest as error:
        raise InvalidRequest(f"{what}: {error.message}", remedy=error.remedy) from error
    llguidance = _import_llguidance()
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: %json {embedded(schema, lenient=lenient)}")
    matcher = llguidance.LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds that nothing can match
    if matcher.is_error():
        raise _refused(what, matcher.get_error())


def _refused(what: str, said: str) -> InvalidRequest:
    """The error for something llguidance refuses, with what it said."""
    said = " ".join(said.partition("<backtrace>")[0].replace("<non-verbose/>", "").split())
    if said.startswith("NoExtension"):
        said = "nothing can match it"
    return InvalidRequest(
        f"{what} cannot be enforced: {said[:_MAX_SAID]}", remedy="Simplify it; docs/runtime.md says what is supported."
    )


@functools.cache
def _limits() -> Any:
    """llguidance's limits: wider than its own where 500 optional properties in a schema would meet them."""
    return _import_llguidance().LLParserLimits(max_items_in_row=20_000, step_max_items=1_000_000, verbose_errors=False)


class _Bytes:
    """Every byte a token: a vocabulary for looking at a grammar without a model's."""

    tokens: ClassVar = [*(bytes([byte]) for byte in range(256)), b"<eos>"]
    eos_token_id = 256
    bos_token_id = None
    special_token_ids: ClassVar = [256]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _byte_tokenizer() -> Any:
    """A tokenizer of single bytes, for compiling a grammar without special tokens."""
    llguidance = _import_llguidance()
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def _check_costs(grammar: str) -> None:
    """Refuses what llguidance's limits do not end soon enough.

    Raises:
        InvalidRequest: a schema out of bounds, or more intersections than can be served.
    """
    decoder = json.JSONDecoder()
    intersections = at = 0
    for found in _SCHEMA.finditer(grammar):
        if found.start() < at:
            continue  # a schema's own text
        try:
            schema, end = decoder.raw_decode(grammar, found.end())
        except (ValueError, RecursionError):
            continue  # part of a text, or llguidance will say what is wrong with it
        check_bounds(schema)
        intersections += grammar.count("&", at, found.start())
        at = end
    intersections += grammar.count("&", at)
    if intersections > _MAX_INTERSECTIONS:
        raise InvalidRequest(
            f"the grammar has & {intersections} times", remedy=f"Use & at most {_MAX_INTERSECTIONS} times."
        )


def read_vocabulary(tokenizer: Path) -> None:
    """Reads what the first grammar over this tokenizer.json would have to wait for. Raises as ``Constraint``."""
    _tokenizer(tokenizer.absolute())


def _tokenizer(path: Path) -> tuple[Any, int]:
    with _load_lock:  # so that two threads do not read it twice
        return _read_tokenizer(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=2)
def _read_tokenizer(path: Path, _changed: int) -> tuple[Any, int]:
    llguidance = _import_llguidance()
    try:
        vocabulary = _Vocabulary(strict_json.read(path))
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary)), vocabulary.eos_token_id
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be used for grammars: {error!r}", remedy="Use a tokenizer.json of gpt-oss, unchanged."
        ) from error


class _Vocabulary:
    """A byte-level tokenizer.json's tokens: all that masks need. Its merges would take a second more to read.

    Args:
        content: of the file.
    """

    bos_token_id = None

    def __init__(self, content: Any) -> None:
        ordinary: dict[str, int] = content["model"]["vocab"]
        special = {int(entry["id"]): str(entry["content"]) for entry in content["added_tokens"]}
        alphabet = byte_alphabet()
        self.tokens = [b""] * (1 + max(*ordinary.values(), *special))
        for text, token in ordinary.items():
            self.tokens[token] = text.translate(alphabet).encode("latin-1")
        for token, text in special.items():
            self.tokens[token] = text.encode()
        self.special_token_ids = sorted(special)
        self.eos_token_id = next(token for token, text in special.items() if text == _EOS)
        self._byte = {token: at for at, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Some spelling of a text; none is asked for, as nothing is forced (``_BY_BYTES``)."""
        return [self._byte[bytes([byte])] for byte in text]
