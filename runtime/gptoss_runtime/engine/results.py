"""What engines report: why a generation ended, tokens and seconds it took, log-probabilities, the model's figures.

Plain data, without behaviour. Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # the model produced a stop token
    LENGTH = "length"  # max_new_tokens, or the context is full
    CANCELLED = "cancelled"  # cancel() or close() was called
    ERROR = "error"  # the engine failed; iteration raised why


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation; ``cached_tokens`` of the prompt were still in the KV cache and cost nothing."""

    prompt_tokens: int
    new_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one generation; rates are tokens a second, 0 where nothing was measured."""

    time_to_first_token: float
    prefill_seconds: float
    decode_seconds: float
    prefill_rate: float
    decode_rate: float

    @classmethod
    def measured(cls, usage: Usage, *, started: float, first: float, last: float) -> Timings:
        """From the moments at which a generation began and gave its first and last token, 0 where it gave none."""
        prefill = first - started if first else 0.0
        decode = last - first
        return cls(
            time_to_first_token=prefill,
            prefill_seconds=prefill,
            decode_seconds=decode,
            prefill_rate=(usage.prompt_tokens - usage.cached_tokens) / prefill if prefill else 0.0,
            decode_rate=(usage.new_tokens - 1) / decode if decode else 0.0,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model thought where it gave a token: natural logs of its own distribution, before any option's effect.

    Args:
        token: the id given out.
        logprob: its log-probability.
        top: the likeliest ids and theirs, likeliest first, as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """How a generation went; ``stop_token`` is the id that ended it when ``finish_reason`` is "stop"."""

    finish_reason: FinishReason
    stop_token: int | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an engine says of the model it serves.

    Args:
        name: the artifact's name.
        target: what it was converted for ("cpu", "directml", …), or "unknown".
        provider: the execution provider it runs on.
        context_length: positions, prompt and answer together.
        vocab_size: rows of the logits.
        eos_token_ids: the artifact's stop tokens, the default of ``stop_token_ids``.
        device: the graphics adapter's name, where one was chosen.
    """

    name: str
    target: str
    provider: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    device: str | None = None
