"""What may be asked of a generation, and the checks that make asking safe.

onnxruntime-genai accepts ``temperature=nan``, ``top_p=5`` or an id outside the vocabulary without a word, so every
value is checked here, before anything native sees it. Knows numbers and ranges; knows nothing of text or engines.
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
    """How to choose tokens and when to stop; the defaults are gpt-oss's own (plain sampling).

    Args:
        max_new_tokens: at most so many tokens, the stop token included; ``None``: as many as the context has room for.
        temperature: 0 is greedy; up to 2. Higher is more varied.
        top_p: keep the smallest set of tokens whose probability reaches this; in (0, 1], 1 keeps all.
        top_k: keep the k likeliest tokens; 0 keeps all.
        min_p: drop tokens less likely than this fraction of the likeliest; in [0, 1].
        repetition_penalty: divides (or multiplies, below zero) the logits of tokens seen, the prompt's too; 1 is off.
        frequency_penalty: taken from a generated token's logit each time it was generated; in [-2, 2].
        presence_penalty: taken once from every generated token's logit; in [-2, 2].
        seed: the same seed, prompt and artifact give the same tokens on one machine; ``None``: fresh each time.
        stop_token_ids: ids that end the generation; ``None``: the artifact's own; ``()``: none.
        logprobs: how many alternatives ``Generation.logprobs`` reports with each token, 0 to 20; ``None``: no report.
        logit_bias: token id -> what is added to its logit, in [-100, 100]; at most 1024 ids. Kept as pairs.
        grammar: a Lark grammar in llguidance's syntax that everything generated matches, from the first token on;
            ``<|channel|>`` and the like name special tokens. Where it is complete, stop tokens are allowed.

    Raises:
        InvalidRequest: a value outside its range; the text names the option, the remedy the range.
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
            _integer("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        _number("temperature", self.temperature, 0.0, 2.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED)
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", _stop_ids(self.stop_token_ids))
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.grammar is not None:
            _grammar(self.grammar)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options' names, in order."""
        return tuple(field.name for field in fields(cls))


def check_token_ids(token_ids: Iterable[int], *, vocab_size: int, context_length: int) -> list[int]:
    """Checks a prompt.

    Args:
        token_ids: integers, a list or a one-dimensional array.
        vocab_size: ids must be below this.
        context_length: the prompt and at least one new token must fit in this many positions.

    Returns:
        The ids as a list of plain ints, at least one.

    Raises:
        InvalidRequest: no ids, not integers, or out of the vocabulary.
        ContextOverflow: no room for an answer.
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
            f"the prompt has {len(ids):,} tokens and the context holds {context_length:,} with the answer",
            remedy=f"Shorten the prompt to {context_length - 1:,} tokens or fewer, or start a new conversation.",
        )
    checked: list[int] = []
    for position, token in enumerate(ids):
        number = _as_integer(token)
        if number is None or not 0 <= number < vocab_size:
            raise InvalidRequest(
                f"prompt token {token!r} at position {position} is not an id of the vocabulary",
                remedy=f"Token ids are integers from 0 to {vocab_size - 1}.",
            )
        checked.append(number)
    return checked


def check_bias(options: GenerationOptions, *, vocab_size: int) -> None:
    """Refuses a ``logit_bias`` on ids that a model does not have.

    Raises:
        InvalidRequest: an id out of the vocabulary.
    """
    for token in dict(options.logit_bias):
        _integer("a token id in logit_bias", token, 0, vocab_size - 1)


def _as_integer(value: object) -> int | None:
    """A plain int for any integer type but bool; None for everything else."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _integer(name: str, value: object, low: int, high: int) -> None:
    number = _as_integer(value)
    if number is None or not low <= number <= high:
        raise InvalidRequest(f"{name} is {_show(value)}", remedy=f"Set {name} to a whole number from {low} to {high}.")


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    number = float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (open_low and number == low):  # never true of nan
        bounds = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
        raise InvalidRequest(f"{name} is {_show(value)}", remedy=f"Set {name} to a number {bounds}.")


def _stop_ids(value: object) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
    if len(ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"stop_token_ids has {len(ids)} entries", remedy=f"Pass {MAX_STOP_TOKENS} stop token ids or fewer."
        )
    for token in ids:
        _integer("stop_token_ids", token, 0, 2**31 - 1)
    return ids


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    remedy = f"Pass logit_bias as a mapping of at most {MAX_BIASED_TOKENS} token ids to numbers from -100 to 100."
    try:
        pairs = dict(value)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"logit_bias is {_show(value)}", remedy=remedy) from error
    if len(pairs) > MAX_BIASED_TOKENS:
        raise InvalidRequest(f"logit_bias has {len(pairs)} entries", remedy=remedy)
    for token, bias in pairs.items():
        _integer("logit_bias", token, 0, 2**31 - 1)
        _number("logit_bias", bias, -100.0, 100.0)
    return tuple((int(token), float(bias)) for token, bias in pairs.items())


def _grammar(value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"grammar is {_show(value)}", remedy="Pass a Lark grammar as a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest("grammar has half a surrogate pair", remedy="Pass valid Unicode as grammar.") from error
    if not 0 < len(value) <= MAX_GRAMMAR:
        raise InvalidRequest(
            f"grammar has {len(value):,} characters", remedy=f"Pass a grammar of 1 to {MAX_GRAMMAR:,} characters."
        )


def _show(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        text = "a huge number"
    return text if len(text) <= 40 else f"{text[:37]}..."
