"""Metrics for Prometheus: requests, tokens, latencies and queue lengths. Numbers only, no text of any request.

Knows how turns end; knows nothing of their content.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_runtime.server.turn_events import ChoiceEnd

_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds
_PER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)  # seconds


class Metrics:
    """One server's metrics; a ``TurnObserver``, called from the turns' threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gptoss_http_requests", "HTTP requests answered", ("method", "route", "status"), registry=self.registry
        )
        self._tokens = Counter(
            "gptoss_tokens",
            "Tokens read (prompt, cached) and generated (completion, reasoning)",
            ("kind",),
            registry=self.registry,
        )
        self._answers = Counter(
            "gptoss_answers", "Answers ended, by their finish reason", ("reason",), registry=self.registry
        )
        self._first_token = Histogram(
            "gptoss_time_to_first_token_seconds",
            "From a request's start, queue and prompt included",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self._per_token = Histogram(
            "gptoss_time_per_output_token_seconds",
            "Between tokens of an answer",
            buckets=_PER_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge("gptoss_requests_waiting", "Requests before their first token", registry=self.registry)
        self.running = Gauge("gptoss_requests_running", "Requests after their first token", registry=self.registry)
        self.loaded = Gauge("gptoss_models_loaded", "Models in memory", registry=self.registry)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def turn_started(self) -> None:
        """See ``TurnObserver``."""
        self.waiting.inc()

    def first_token(self, seconds: float) -> None:
        """See ``TurnObserver``."""
        self.waiting.dec()
        self.running.inc()
        self._first_token.observe(seconds)

    def turn_ended(self, ends: list[ChoiceEnd], *, had_token: bool) -> None:
        """See ``TurnObserver``."""
        (self.running if had_token else self.waiting).dec()
        for end in ends:
            usage, timings = end.result.usage, end.result.timings
            self._answers.labels(end.reason).inc()
            self._tokens.labels("prompt").inc(usage.prompt_tokens)
            self._tokens.labels("cached").inc(usage.cached_tokens)
            self._tokens.labels("completion").inc(usage.new_tokens)
            self._tokens.labels("reasoning").inc(end.reasoning_tokens)
            if timings.decode_rate:
                self._per_token.observe(1 / timings.decode_rate)


class CountRequests:
    """Middleware that counts responses by route; a path without a route counts as "none", so that labels stay few."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "OPTIONS", "HEAD") else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, count_and_send)
