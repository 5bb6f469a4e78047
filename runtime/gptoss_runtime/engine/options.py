"""The options of a generation, and validation of options and prompts.

onnxruntime-genai silently accepts ``temperature=nan``, ``top_p=5`` or an id outside the vocabulary, so every value is
checked here, before native code sees it. Knows numbers and ranges; knows nothing of text or engines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from gptoss_runtime.errors import ContextOverflow, InvalidRequest

MAX_SEED = 2**63 - 1
MAX_STOP_TOKENS = 64
MAX_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024
MAX_GRAMMAR = 1 << 20  # characters


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Sampling and stopping; the defaults are the ones gpt-oss recommends (plain sampling).

    Args:
        max_new_tokens: maximum number of generated tokens, the stop token included; ``None`` means up to the context
            length.
        temperature: in [0, 2]; 0 is greedy, higher is more varied.
        top_p: keep the smallest set of tokens whose probability reaches this; in (0, 1], 1 keeps all.
        top_k: keep the k most likely tokens; 0 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely one; in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens that are in the prompt or were
            generated; in (0, 10], 1 is off.
        frequency_penalty: subtracted from a token's logit once per time it was generated; in [-2, 2].
        presence_penalty: subtracted from a token's logit if it was generated; in [-2, 2].
        seed: the same seed, prompt and artifact give the same tokens on one machine; ``None`` means a random seed.
        stop_token_ids: ids that end the generation; ``None`` means the artifact's; ``()`` means none.
        logprobs: number of most likely tokens that ``Generation.logprobs`` reports at each position, 0 to 20; ``None``
            turns the report off.
        logit_bias: token id -> number to add to its logit, in [-100, 100]; at most 1024 ids. Stored as pairs.
        grammar: a Lark grammar in llguidance's syntax; the generated text matches it from the first token on. Special
            tokens are written as ``<|channel|>``. Stop tokens are allowed where the grammar is complete.

    Raises:
        InvalidRequest: a value is out of range; the message names the option and the remedy its range.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    grammar: str | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _check_integer("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        _check_number("temperature", self.temperature, 0.0, 2.0)
        _check_number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_integer("top_k", self.top_k, 0, 2**31 - 1)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, MAX_SEED)
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", _to_stop_ids(self.stop_token_ids))
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        object.__setattr__(self, "logit_bias", _to_bias_pairs(self.logit_bias))
        if self.grammar is not None:
            _check_grammar(self.grammar)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature == 0.0 or self.top_k == 1

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the options, in order."""
        return tuple(field.name for field in fields(cls))


def check_token_ids(token_ids: Iterable[int], *, vocab_size: int, context_length: int) -> list[int]:
    """Validates a prompt.

    Args:
        token_ids: integers, as a list or a one-dimensional array.
        vocab_size: ids must be below this.
        context_length: must hold the prompt and at least one new token.

    Returns:
        The ids as a list of plain ints, at least one.

    Raises:
        InvalidRequest: the prompt is empty, or an id is not an integer or outside the vocabulary.
        ContextOverflow: the prompt leaves no room for an answer.
    """
    if isinstance(token_ids, np.ndarray):
        if token_ids.ndim != 1 or not np.issubdtype(token_ids.dtype, np.integer):
            raise InvalidRequest(
                f"the prompt is an array of shape {token_ids.shape} and dtype {token_ids.dtype}",
                remedy="Pass token ids as a one-dimensional array of integers.",
            )
        ids: Sequence[object] = token_ids.tolist()
    elif isinstance(token_ids, str | bytes):
        raise InvalidRequest("the prompt is text", remedy="Pass token ids here; Chat and Harmony turn text into ids.")
    else:
        ids = list(token_ids)
    if not ids:
        raise InvalidRequest("the prompt is empty", remedy="Pass at least one token id.")
    if len(ids) + 1 > context_length:
        raise ContextOverflow(
            f"the prompt has {len(ids):,} tokens; the context holds {context_length:,}, prompt and answer together",
            remedy=f"Shorten the prompt to {context_length - 1:,} tokens or fewer, or start a new conversation.",
        )
    checked: list[int] = []
    for position, token in enumerate(ids):
        number = _to_int(token)
        if number is None or not 0 <= number < vocab_size:
            raise InvalidRequest(
                f"prompt token {token!r} at position {position} is not an id of the vocabulary",
                remedy=f"Token ids are integers from 0 to {vocab_size - 1}.",
            )
        checked.append(number)
    return checked


def check_bias(options: GenerationOptions, *, vocab_size: int) -> None:
    """Checks that the ids in ``logit_bias`` are in the vocabulary.

    Raises:
        InvalidRequest: an id is not.
    """
    for token in dict(options.logit_bias):
        _check_integer("a token id in logit_bias", token, 0, vocab_size - 1)


def _to_int(value: object) -> int | None:
    """Converts any integer type but bool to int; returns None for everything else."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    number = _to_int(value)
    if number is None or not low <= number <= high:
        raise InvalidRequest(f"{name} is {_quote(value)}", remedy=f"Set {name} to a whole number from {low} to {high}.")


def _check_number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    number = float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (open_low and number == low):  # NaN fails the first test
        bounds = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
        raise InvalidRequest(f"{name} is {_quote(value)}", remedy=f"Set {name} to a number {bounds}.")


def _to_stop_ids(value: object) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
    if len(ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"stop_token_ids has {len(ids)} entries", remedy=f"Pass {MAX_STOP_TOKENS} stop token ids or fewer."
        )
    for token in ids:
        _check_integer("stop_token_ids", token, 0, 2**31 - 1)
    return ids


def _to_bias_pairs(value: object) -> tuple[tuple[int, float], ...]:
    remedy = f"Pass logit_bias as a mapping of at most {MAX_BIASED_TOKENS} token ids to numbers from -100 to 100."
    try:
        pairs = dict(value)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"logit_bias is {_quote(value)}", remedy=remedy) from error
    if len(pairs) > MAX_BIASED_TOKENS:
        raise InvalidRequest(f"logit_bias has {len(pairs)} entries", remedy=remedy)
    for token, bias in pairs.items():
        _check_integer("logit_bias", token, 0, 2**31 - 1)
        _check_number("logit_bias", bias, -100.0, 100.0)
    return tuple((int(token), float(bias)) for token, bias in pairs.items())


def _check_grammar(value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"grammar is {_quote(value)}", remedy="Pass a Lark grammar as a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest("grammar has a lone surrogate", remedy="Pass valid Unicode as grammar.") from error
    if not 0 < len(value) <= MAX_GRAMMAR:
        raise InvalidRequest(
            f"grammar has {len(value):,} characters", remedy=f"Pass a grammar of 1 to {MAX_GRAMMAR:,} characters."
        )


def _quote(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "a huge number"
    return text if len(text) <= 40 else f"{text[:37]}..."
