"""Token counts and speeds of an answer, in OpenAI's shapes and llama-server's. Knows ends; knows nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.results import TokenLogprobs
from gptoss_runtime.server.reading import End


def chat_usage(prompt_tokens: int, ends: Sequence[End]) -> dict[str, Any]:
    """``usage`` of a chat completion; the prompt counts once however many choices were made of it."""
    completion = sum(end.result.usage.new_tokens for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": _cached(ends)},
        "completion_tokens_details": {"reasoning_tokens": sum(end.reasoning_tokens for end in ends)},
    }


def response_usage(prompt_tokens: int, end: End) -> dict[str, Any]:
    """``usage`` of a response."""
    made = end.result.usage.new_tokens
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": _cached([end]), "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
        "total_tokens": prompt_tokens + made,
    }


def timings(ends: Sequence[End]) -> dict[str, float]:
    """The first choice's speeds: milliseconds, and tokens a second."""
    first = ends[0].result.timings
    return {
        "time_to_first_token_ms": round(first.time_to_first_token * 1000, 3),
        "prompt_per_second": round(first.prefill_rate, 3),
        "predicted_per_second": round(first.decode_rate, 3),
    }


def logprob_entries(harmony: Harmony, entries: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens, as both APIs have them."""
    return [
        _entry(harmony, entry.token, entry.logprob)
        | {"top_logprobs": [_entry(harmony, token, logprob) for token, logprob in entry.top]}
        for entry in entries
    ]


def _entry(harmony: Harmony, token: int, logprob: float) -> dict[str, Any]:
    raw = harmony.token_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


def _cached(ends: Sequence[End]) -> int:
    return ends[0].result.usage.cached_tokens if ends else 0
