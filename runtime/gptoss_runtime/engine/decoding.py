"""The decoding loop, for engines that can compute the logits after a sequence of tokens.

``LogitsEngine`` needs only one method, ``_forward``; checks, sampling, stop tokens, cancellation, usage and timings are
implemented once, here. Knows nothing of how logits are computed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import abstractmethod
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.engine.base import Engine, Generation
from gptoss_runtime.engine.grammar import Constraint, preload_vocabulary
from gptoss_runtime.engine.options import GenerationOptions, check_bias, check_token_ids
from gptoss_runtime.engine.results import FinishReason, GenerationResult, Timings, Usage
from gptoss_runtime.engine.sampling import Sampler, compute_logprobs
from gptoss_runtime.errors import GptOssError, InvalidRequest, NumericalError


class LogitsEngine(Engine):
    """An engine on top of ``_forward``; a lock allows one forward pass at a time.

    Args:
        tokenizer: the artifact's tokenizer.json, which grammars need; ``None``: requests with a grammar are refused.
    """

    def __init__(self, tokenizer: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._tokenizer = tokenizer

    @abstractmethod
    def _forward(self, tokens: list[int], *, owner: object, max_length: int) -> tuple[NDArray[np.float32] | None, int]:
        """Computes ``tokens``, or the next chunk of them, into the owner's KV cache; called by one thread at a time.

        Args:
            tokens: the whole sequence so far; must not be kept.
            owner: identifies the generation; its sequence only ever grows.
            max_length: tokens that the sequence may reach, a hint for allocating the cache.

        Returns:
            The next token's logits, float32 ``[vocab]``, or None if more chunks of ``tokens`` remain; and how many of
            ``tokens`` were in the cache before.
        """

    def _release(self, owner: object) -> None:
        """Called when the owner's generation has ended; by any thread, possibly more than once."""

    def _discard(self, owner: object) -> None:
        """Drops the owner's KV cache, because its logits were not finite; called by one thread at a time."""

    def generate(self, token_ids: Iterable[int], options: GenerationOptions | None = None) -> Generation:
        """See ``Engine.generate``."""
        info = self.info
        prompt = check_token_ids(token_ids, vocab_size=info.vocab_size, context_length=info.context_length)
        options = options or GenerationOptions()
        check_bias(options, vocab_size=info.vocab_size)
        return LogitsGeneration(self, prompt, options)

    def preload_grammar_vocabulary(self) -> None:
        """Loads what the first grammar needs, ahead of time. Ignores errors: the first grammar will raise them."""
        if self._tokenizer is not None:
            with contextlib.suppress(GptOssError):
                preload_vocabulary(self._tokenizer)

    def _compile_grammar(self, grammar: str, stops: Iterable[int]) -> Constraint:
        if self._tokenizer is None:
            raise InvalidRequest("this engine has no tokenizer, which a grammar needs", remedy="Leave grammar out.")
        return Constraint(self._tokenizer, grammar, vocab_size=self.info.vocab_size, stops=stops)


class LogitsGeneration(Generation):
    """One run of the decoding loop: forward, sample, yield, until a stop condition."""

    def __init__(self, engine: LogitsEngine, prompt: list[int], options: GenerationOptions) -> None:
        super().__init__()
        self._engine = engine
        self._tokens = list(prompt)
        self._prompt_tokens = len(prompt)
        self._sampler = Sampler(options, prompt)
        stops = engine.info.eos_token_ids if options.stop_token_ids is None else options.stop_token_ids
        self._stops = frozenset(stops)
        self._constraint = None if options.grammar is None else engine._compile_grammar(options.grammar, self._stops)
        self._top_logprobs = options.logprobs
        room = engine.info.context_length - len(prompt)
        self._max_new_tokens = room if options.max_new_tokens is None else min(room, options.max_new_tokens)
        self._owner = object()
        self._cached_tokens: int | None = None  # unknown until the first forward pass
        self._started_at = self._first_token_at = self._last_token_at = 0.0
        self._loop = self._run()

    def __next__(self) -> int:
        with self._engine._lock:
            while (token := next(self._loop)) is None:
                pass
        return token

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were already in the KV cache; 0 until the first forward pass."""
        return self._cached_tokens or 0

    @property
    def new_tokens(self) -> int:
        """Number of tokens generated so far."""
        return len(self._tokens) - self._prompt_tokens

    def step(self) -> int | None:
        """Runs one forward pass, for a scheduler that interleaves generations in one thread; takes no lock.

        Returns:
            A token, or None after a prompt chunk.

        Raises:
            StopIteration: the generation has ended.
        """
        return next(self._loop)

    def close(self) -> None:
        """See ``Generation.close``."""
        self.cancel()
        self._loop.close()
        if self._result is None:  # never started, so _run has not set it
            self._end(FinishReason.CANCELLED)

    def _run(self) -> Generator[int | None]:
        """The loop: yields tokens, and None after each prompt chunk but the last."""
        self._started_at = time.perf_counter()
        ending: tuple[FinishReason, int | None] = (FinishReason.CANCELLED, None)
        try:
            with contextlib.suppress(GeneratorExit):
                ending = yield from self._decode()
        except Exception:
            ending = (FinishReason.ERROR, None)
            raise
        finally:
            self._end(*ending)
            self._engine._release(self._owner)

    def _decode(self) -> Generator[int | None, None, tuple[FinishReason, int | None]]:
        while not self._cancel.is_set():
            if self._constraint is not None and self._constraint.complete:
                return FinishReason.STOP, None
            token = yield from self._generate_token()
            if token is None:
                break
            yield token
            if token in self._stops:
                return FinishReason.STOP, token
            if self.new_tokens >= self._max_new_tokens:
                return FinishReason.LENGTH, None
        return FinishReason.CANCELLED, None

    def _generate_token(self) -> Generator[None, None, int | None]:
        """Yields after each prompt chunk but the last; returns the next token, or None if cancelled in between."""
        max_length = self._prompt_tokens + self._max_new_tokens
        while True:
            logits, cached = self._engine._forward(self._tokens, owner=self._owner, max_length=max_length)
            if self._cached_tokens is None:
                self._cached_tokens = cached
            if logits is not None:
                break
            yield
            if self._cancel.is_set():
                return None
        token = self._sample(logits)
        self._last_token_at = time.perf_counter()
        self._first_token_at = self._first_token_at or self._last_token_at
        self._tokens.append(token)
        return token

    def _sample(self, logits: NDArray[np.float32]) -> int:
        constraint = self._constraint
        try:
            token = self._sampler.sample(logits, None if constraint is None else constraint.token_mask())
        except NumericalError as error:
            self._engine._discard(self._owner)
            raise self._locate_error(error) from error
        if constraint is not None and token not in self._stops:
            constraint.accept(token)
        if self._top_logprobs is not None:
            self.logprobs.append(compute_logprobs(logits, token, self._top_logprobs))
        return token

    def _locate_error(self, error: NumericalError) -> NumericalError:
        """Adds the position, the model and the device to the sampler's error."""
        info = self._engine.info
        where = info.provider if info.device is None else f"{info.provider}, {info.device}"
        return NumericalError(
            f"{error.message} after {len(self._tokens):,} tokens, {self.new_tokens:,} of them generated: {info.name} "
            f"(target {info.target}) overflowed on {where}, or its weights are damaged",
            remedy="gptoss doctor ARTIFACT --check tells whether the files are damaged or the device is at fault. If "
            "neither, please report the prompt.",
        )

    def _end(self, reason: FinishReason, stop_token: int | None = None) -> None:
        usage = Usage(self._prompt_tokens, self.new_tokens, self.cached_tokens)
        timings = Timings.from_timestamps(
            usage, started=self._started_at, first=self._first_token_at, last=self._last_token_at
        )
        self._result = GenerationResult(reason, stop_token, usage, timings)
