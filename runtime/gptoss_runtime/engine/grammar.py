"""Constrained decoding: token masks from a grammar, by llguidance. The only module that imports it.

Grammars come from clients, so their cost is bounded: by their length, by limits on their JSON schemas (``json_schema``)
and by llguidance's own limits. Knows token ids and grammars; knows nothing of harmony or engines.
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
from gptoss_runtime.artifact.vocabulary import unicode_to_bytes
from gptoss_runtime.engine.json_schema import check_bounds, to_grammar_text
from gptoss_runtime.errors import ArtifactError, BackendUnavailable, InvalidRequest

_EOS = "<|endoftext|>"  # llguidance allows it where the grammar may end; masks replace it by the stop tokens
_SCHEMA = re.compile(r"%json\s*")
# llguidance would tokenise text that the grammar forces, and parse special tokens in it: "<|end|>" in a schema's enum
# would become the control token. Without forcing, the model spells such text itself.
_NO_FORCING = '\n%llguidance { "no_forcing": true }\n'
_MAX_INTERSECTIONS = 16  # of regexes; the cost is exponential in their number
_MAX_QUOTED = 600  # characters of llguidance's message to quote
_load_lock = threading.Lock()


def _import_llguidance() -> ModuleType:
    """Imports llguidance.

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
    """A compiled grammar and its state in one generation: gives the mask for each token, and accepts the chosen one.

    Args:
        tokenizer: the artifact's tokenizer.json; reading it takes a second, once per process.
        grammar: in llguidance's Lark syntax.
        vocab_size: number of logits per position; ids without a token are never allowed.
        stops: the generation's stop tokens, allowed where the grammar may end.

    Raises:
        InvalidRequest: the grammar is invalid, matches nothing, or costs too much.
        ArtifactError: the tokenizer cannot be read.
        BackendUnavailable: llguidance is not installed.
    """

    def __init__(self, tokenizer: Path, grammar: str, *, vocab_size: int, stops: Iterable[int]) -> None:
        llguidance = _import_llguidance()
        _check_costs(grammar)
        llg_tokenizer, self._eos = _load_tokenizer(tokenizer.absolute())
        self._stops = np.fromiter((stop for stop in stops if stop < vocab_size), np.int64)
        self._vocab_size = vocab_size
        self._matcher = llguidance.LLMatcher(
            llg_tokenizer,
            llguidance.LLMatcher.grammar_from_lark(grammar + _NO_FORCING),
            log_level=0,
            limits=_parser_limits(),
        )
        self._check_matcher()
        self._mask: NDArray[np.bool_] | None = None  # computed once per token
        self.token_mask()

    def token_mask(self) -> NDArray[np.bool_]:
        """True for the tokens that may come next, bool ``[vocab_size]``; must not be modified.

        Raises:
            InvalidRequest: the grammar exceeded a cost limit.
        """
        if self._mask is None:
            self._mask = self._compute_mask()
        return self._mask

    @property
    def complete(self) -> bool:
        """Whether no token is allowed any more: the grammar has ended and there are no stop tokens."""
        return not self.token_mask().any()

    def accept(self, token: int) -> None:
        """Advances the grammar by an allowed token. Do not call it with a stop token: the grammar has none.

        Raises:
            InvalidRequest: the grammar exceeded a cost limit.
        """
        self._mask = None
        if not self._matcher.consume_token(token):
            self._check_matcher()

    def _compute_mask(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check_matcher()
        known = np.unpackbits(bits, bitorder="little")[: self._vocab_size].view(np.bool_)
        mask = np.pad(known, (0, self._vocab_size - known.size)) if known.size < self._vocab_size else known
        if mask[self._eos]:
            mask[self._eos] = False
            mask[self._stops] = True
        return mask

    def _check_matcher(self) -> None:
        if self._matcher.is_error():
            raise _grammar_error("the grammar", self._matcher.get_error())


def check_schema(schema: object, *, what: str, lenient: bool) -> None:
    """Checks that a JSON schema can be enforced, by compiling it over a vocabulary of single bytes; takes milliseconds.

    Args:
        schema: JSON values.
        what: the schema's name in errors.
        lenient: as for ``json_schema.to_grammar_text``.

    Raises:
        InvalidRequest: the schema cannot be enforced, or costs too much.
        BackendUnavailable: llguidance is not installed.
    """
    try:
        check_bounds(schema)
    except InvalidRequest as error:
        raise InvalidRequest(f"{what}: {error.message}", remedy=error.remedy) from error
    llguidance = _import_llguidance()
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: %json {to_grammar_text(schema, lenient=lenient)}")
    matcher = llguidance.LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=_parser_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()  # detects that nothing can match
    if matcher.is_error():
        raise _grammar_error(what, matcher.get_error())


def _grammar_error(what: str, message: str) -> InvalidRequest:
    """Converts llguidance's message to an error."""
    message = " ".join(message.partition("<backtrace>")[0].replace("<non-verbose/>", "").split())
    if message.startswith("NoExtension"):
        message = "nothing can match it"
    return InvalidRequest(
        f"{what} cannot be enforced: {message[:_MAX_QUOTED]}",
        remedy="Simplify it; docs/runtime.md lists what is supported.",
    )


@functools.cache
def _parser_limits() -> Any:
    """llguidance's limits, raised above its defaults where a schema of 500 optional properties would exceed them."""
    return _import_llguidance().LLParserLimits(max_items_in_row=20_000, step_max_items=1_000_000, verbose_errors=False)


class _ByteVocabulary:
    """A vocabulary in which every byte is a token, for compiling grammars without a model's vocabulary."""

    tokens: ClassVar = [*(bytes([byte]) for byte in range(256)), b"<eos>"]
    eos_token_id = 256
    bos_token_id = None
    special_token_ids: ClassVar = [256]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _byte_tokenizer() -> Any:
    """A tokenizer over single bytes; it has no special tokens."""
    llguidance = _import_llguidance()
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_ByteVocabulary()))


def _check_costs(grammar: str) -> None:
    """Checks the costs that llguidance's limits do not bound soon enough.

    Raises:
        InvalidRequest: a schema exceeds a limit, or the grammar has too many intersections.
    """
    decoder = json.JSONDecoder()
    intersections = position = 0
    for match in _SCHEMA.finditer(grammar):
        if match.start() < position:
            continue  # inside the previous schema
        try:
            schema, end = decoder.raw_decode(grammar, match.end())
        except (ValueError, RecursionError):
            continue  # part of a string, or an error that llguidance will report
        check_bounds(schema)
        intersections += grammar.count("&", position, match.start())
        position = end
    intersections += grammar.count("&", position)
    if intersections > _MAX_INTERSECTIONS:
        raise InvalidRequest(
            f"the grammar uses & {intersections} times", remedy=f"Use & at most {_MAX_INTERSECTIONS} times."
        )


def preload_vocabulary(tokenizer: Path) -> None:
    """Loads the vocabulary of a tokenizer.json, so that the first grammar starts sooner. Raises as ``Constraint``."""
    _load_tokenizer(tokenizer.absolute())


def _load_tokenizer(path: Path) -> tuple[Any, int]:
    with _load_lock:  # two threads must not read it twice
        return _read_tokenizer(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=2)
def _read_tokenizer(path: Path, _changed: int) -> tuple[Any, int]:
    llguidance = _import_llguidance()
    try:
        vocabulary = _Vocabulary(strict_json.read(path))
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary)), vocabulary.eos_token_id
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be used for grammars: {error!r}", remedy="Use gpt-oss's tokenizer.json, unchanged."
        ) from error


class _Vocabulary:
    """The tokens of a byte-level tokenizer.json, which is all that masks need; merges would take a second more to read.

    Args:
        content: the parsed file.
    """

    bos_token_id = None

    def __init__(self, content: Any) -> None:
        ordinary: dict[str, int] = content["model"]["vocab"]
        special = {int(entry["id"]): str(entry["content"]) for entry in content["added_tokens"]}
        alphabet = unicode_to_bytes()
        self.tokens = [b""] * (1 + max(*ordinary.values(), *special))
        for text, token in ordinary.items():
            self.tokens[token] = text.translate(alphabet).encode("latin-1")
        for token, text in special.items():
            self.tokens[token] = text.encode()
        self.special_token_ids = sorted(special)
        self.eos_token_id = next(token for token, text in special.items() if text == _EOS)
        self._byte_ids = {token: index for index, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Encodes text byte by byte. llguidance requires the method but does not call it with ``_NO_FORCING``."""
        return [self._byte_ids[bytes([byte])] for byte in text]
