"""Parts of an answer that both OpenAI APIs write alike: log-probabilities, timings, cached tokens, ids of calls."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.results import TokenLogprobs
from gptoss_runtime.server.turn_events import ChoiceEnd


def new_call_id() -> str:
    """A tool call's id in OpenAI's format."""
    return f"call_{uuid.uuid4().hex[:24]}"


def format_timings(ends: Sequence[ChoiceEnd]) -> dict[str, float]:
    """The first choice's speeds, named as llama-server does: milliseconds, and tokens per second."""
    timings = ends[0].result.timings
    return {
        "time_to_first_token_ms": round(timings.time_to_first_token * 1000, 3),
        "prompt_per_second": round(timings.prefill_rate, 3),
        "predicted_per_second": round(timings.decode_rate, 3),
    }


def count_cached_tokens(ends: Sequence[ChoiceEnd]) -> int:
    """Prompt tokens that the first choice took from the KV cache."""
    return ends[0].result.usage.cached_tokens if ends else 0


def format_logprobs(harmony: Harmony, logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens, in OpenAI's shape."""
    return [
        _format_token(harmony, entry.token, entry.logprob)
        | {"top_logprobs": [_format_token(harmony, token, logprob) for token, logprob in entry.top]}
        for entry in logprobs
    ]


def _format_token(harmony: Harmony, token: int, logprob: float) -> dict[str, Any]:
    raw = harmony.token_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}
