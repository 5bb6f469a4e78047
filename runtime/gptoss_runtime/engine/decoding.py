"""The decoding loop, for engines that can say "the logits after these tokens".

``LogitsEngine`` turns one method, ``_advance``, into a whole ``Engine``: checks, sampling, stop tokens, cancel, usage
and timings are written once, here. Knows nothing of how logits are computed.
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
from gptoss_runtime.engine.grammar import Constraint, read_vocabulary
from gptoss_runtime.engine.options import GenerationOptions, check_bias, check_token_ids
from gptoss_runtime.engine.results import FinishReason, GenerationResult, Timings, Usage
from gptoss_runtime.engine.sampling import Sampler, token_logprobs
from gptoss_runtime.errors import GptOssError, InvalidRequest, NumericalError


class LogitsEngine(Engine):
    """An engine over ``_advance``; one generation advances at a time.

    Args:
        tokenizer: the artifact's tokenizer.json, which grammars need; ``None``: they are refused.
    """

    def __init__(self, tokenizer: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._tokenizer = tokenizer

    @abstractmethod
    def _advance(self, tokens: list[int], *, owner: object, room: int) -> tuple[NDArray[np.float32] | None, int]:
        """Makes the KV cache hold ``tokens``, or one piece more of them; called by one thread at a time.

        Args:
            tokens: the whole sequence so far; not to be kept.
            owner: the same object for all calls of one generation, whose sequence only ever grows.
            room: positions that this generation may come to need in all, a hint for allocating.

        Returns:
            The next token's logits, float32 ``[vocab]``, or None while there is more of ``tokens`` to compute; and how
            many of ``tokens`` were already in the cache.
        """

    def _release(self, owner: object) -> None:
        """The generation of ``owner`` has ended; may be called from any thread, and more than once."""

    def _discard(self, owner: object) -> None:
        """The logits of ``owner`` were not finite: its keys and values serve nobody; called as ``_advance`` is."""

    def generate(self, token_ids: Iterable[int], options: GenerationOptions | None = None) -> Generation:
        """See ``Engine.generate``."""
        info = self.info
        prompt = check_token_ids(token_ids, vocab_size=info.vocab_size, context_length=info.context_length)
        options = options or GenerationOptions()
        check_bias(options, vocab_size=info.vocab_size)
        return LogitsGeneration(self, prompt, options)

    def read_vocabulary(self) -> None:
        """Reads what the first grammar would have to wait for; where that fails, the first grammar says why."""
        if self._tokenizer is not None:
            with contextlib.suppress(GptOssError):
                read_vocabulary(self._tokenizer)

    def _constraint(self, grammar: str, stops: Iterable[int]) -> Constraint:
        if self._tokenizer is None:
            raise InvalidRequest("this engine has no tokenizer, which a grammar needs", remedy="Leave grammar out.")
        return Constraint(self._tokenizer, grammar, vocab_size=self.info.vocab_size, stops=stops)


class LogitsGeneration(Generation):
    """One pass through the loop: advance, sample, yield, stop."""

    def __init__(self, engine: LogitsEngine, prompt: list[int], options: GenerationOptions) -> None:
        super().__init__()
        self._engine = engine
        self._tokens = list(prompt)
        self._prompt_tokens = len(prompt)
        self._sampler = Sampler(options, prompt)
        stops = engine.info.eos_token_ids if options.stop_token_ids is None else options.stop_token_ids
        self._stops = frozenset(stops)
        self._constraint = None if options.grammar is None else engine._constraint(options.grammar, self._stops)
        self._alternatives = options.logprobs
        room = engine.info.context_length - len(prompt)
        self._limit = room if options.max_new_tokens is None else min(room, options.max_new_tokens)
        self._owner = object()
        self._cached: int | None = None  # until the first piece is computed
        self._started = self._first = self._last = 0.0
        self._steps = self._loop()

    def __next__(self) -> int:
        with self._engine._lock:
            while (token := next(self._steps)) is None:
                pass
        return token

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were in the KV cache; 0 until the first piece is computed."""
        return self._cached or 0

    @property
    def new_tokens(self) -> int:
        """Tokens that were given out."""
        return len(self._tokens) - self._prompt_tokens

    def turn(self) -> int | None:
        """One piece of the work, for whoever runs many generations in one thread; takes no lock.

        Returns:
            A token, or None after a piece of the prompt.

        Raises:
            StopIteration: the generation has ended.
        """
        return next(self._steps)

    def close(self) -> None:
        """See ``Generation.close``."""
        self.cancel()
        self._steps.close()
        if self._result is None:  # never started, so the loop's own ending did not run
            self._end(FinishReason.CANCELLED)

    def _loop(self) -> Generator[int | None]:
        self._started = time.perf_counter()
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
            token = yield from self._step()
            if token is None:
                break
            yield token
            if token in self._stops:
                return FinishReason.STOP, token
            if self.new_tokens >= self._limit:
                return FinishReason.LENGTH, None
        return FinishReason.CANCELLED, None

    def _step(self) -> Generator[None, None, int | None]:
        """The next token; yields after each piece of the prompt but the last, and gives None if cancelled then."""
        room = self._prompt_tokens + self._limit
        while True:
            logits, cached = self._engine._advance(self._tokens, owner=self._owner, room=room)
            if self._cached is None:
                self._cached = cached
            if logits is not None:
                break
            yield
            if self._cancel.is_set():
                return None
        token = self._choose(logits)
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._tokens.append(token)
        return token

    def _choose(self, logits: NDArray[np.float32]) -> int:
        constraint = self._constraint
        try:
            token = self._sampler.choose(logits, None if constraint is None else constraint.allowed())
        except NumericalError as error:
            self._engine._discard(self._owner)
            raise self._numerical_error(error) from error
        if constraint is not None and token not in self._stops:
            constraint.accept(token)
        if self._alternatives is not None:
            self.logprobs.append(token_logprobs(logits, token, self._alternatives))
        return token

    def _numerical_error(self, error: NumericalError) -> NumericalError:
        """The sampler's error, with where it was and what it means."""
        info = self._engine.info
        where = info.provider if info.device is None else f"{info.provider}, {info.device}"
        return NumericalError(
            f"{error.message} after {len(self._tokens):,} tokens, {self.new_tokens:,} of them generated: {info.name} "
            f"(target {info.target}) overflowed on {where}, or its weights are damaged",
            remedy="gptoss doctor ARTIFACT --check says whether its files are damaged or the device is to blame. If "
            "neither is, please report the prompt.",
        )

    def _end(self, reason: FinishReason, stop: int | None = None) -> None:
        usage = Usage(self._prompt_tokens, self.new_tokens, self.cached_tokens)
        timings = Timings.measured(usage, started=self._started, first=self._first, last=self._last)
        self._result = GenerationResult(reason, stop, usage, timings)
