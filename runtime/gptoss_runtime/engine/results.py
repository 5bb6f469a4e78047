"""What engines report: finish reasons, token counts, timings, log-probabilities and model metadata.

Plain data. Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # a stop token was generated
    LENGTH = "length"  # max_new_tokens was reached, or the context is full
    CANCELLED = "cancelled"  # cancel() or close() was called
    ERROR = "error"  # the engine failed; iteration raised the error


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation; ``cached_tokens`` counts the prompt tokens that were already in the KV cache."""

    prompt_tokens: int
    new_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of one generation in seconds, and rates in tokens per second; 0 if nothing was measured."""

    time_to_first_token: float
    prefill_seconds: float
    decode_seconds: float
    prefill_rate: float
    decode_rate: float

    @classmethod
    def from_timestamps(cls, usage: Usage, *, started: float, first: float, last: float) -> Timings:
        """Computes the timings.

        Args:
            usage: the token counts.
            started: when the generation started, in seconds on any clock.
            first: when it yielded its first token; 0 if it yielded none.
            last: when it yielded its last token; 0 if it yielded none.
        """
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
    """Log-probabilities at one generated token: natural logs of the model's own distribution, before any option.

    Args:
        token: the generated id.
        logprob: its log-probability.
        top: the most likely ids with their log-probabilities, most likely first; as many as were requested.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """How a generation ended; ``stop_token`` is the id that ended it if ``finish_reason`` is "stop"."""

    finish_reason: FinishReason
    stop_token: int | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Metadata of a loaded model.

    Args:
        name: the artifact's name.
        target: what it was converted for ("cpu", "directml", …), or "unknown".
        provider: the execution provider it runs on.
        context_length: maximum number of tokens, prompt and answer together.
        vocab_size: number of logits per position.
        eos_token_ids: the artifact's stop tokens, the default of ``stop_token_ids``.
        device: the graphics adapter's name, if one was chosen.
    """

    name: str
    target: str
    provider: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    device: str | None = None
