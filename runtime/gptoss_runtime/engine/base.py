"""The engine interface: token ids in, token ids out, with cancellation, a finish reason, usage and timings.

The rest of the runtime uses ``Engine`` and ``Generation``; ``gptoss_runtime.engine.loading.load_engine`` chooses the
implementation. Knows nothing of text, tokenisation or harmony, and nothing of its implementations.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.engine.results import GenerationResult, ModelInfo, TokenLogprobs


class Generation(ABC, Iterator[int]):
    """A running generation: an iterator over the generated token ids, the stop token included.

    ``cancel`` may be called from any thread, also during prefill: iteration ends within one token (or one prompt
    chunk) and the engine stays usable. ``result`` is available once iteration has ended, also after an error.
    ``logprobs`` has one entry per id yielded so far if the options request them; otherwise it is empty.

    Iteration raises ``NumericalError`` if the model's logits are not finite, and another ``GptOssError`` if the engine
    fails for another reason. ``result`` then has the finish reason "error" and counts the ids yielded before.
    """

    def __init__(self) -> None:
        self._cancel = threading.Event()
        self._result: GenerationResult | None = None
        self.logprobs: list[TokenLogprobs] = []

    def cancel(self) -> None:
        """Requests the end of the generation; thread-safe, returns at once."""
        self._cancel.set()

    @property
    def result(self) -> GenerationResult:
        """The finish reason, usage and timings.

        Raises:
            RuntimeError: iteration has not ended yet.
        """
        if self._result is None:
            raise RuntimeError("the generation has not ended: iterate it to its end, or close it")
        return self._result

    @abstractmethod
    def close(self) -> None:
        """Ends the generation now; its finish reason is "cancelled" unless it had already ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Engine(ABC):
    """A loaded model.

    Thread-safe: concurrent generations are interleaved and do not affect each other's tokens. If there are more of them
    than ``slots``, they evict each other's KV cache and every switch costs a prefill; queue them instead, as
    ``gptoss_runtime.engine_process.engine.ProcessEngine`` does.
    """

    info: ModelInfo
    slots: int = 1  # number of KV caches, and so of generations that can run at once

    @abstractmethod
    def generate(self, token_ids: Iterable[int], options: GenerationOptions | None = None) -> Generation:
        """Starts a generation; tokens are computed as it is iterated.

        Args:
            token_ids: the prompt, at least one id.
            options: sampling and stopping; ``None`` means the defaults.

        Raises:
            InvalidRequest: the prompt or an option is invalid; nothing was started.
            ContextOverflow: the prompt leaves no room for an answer.
        """

    @abstractmethod
    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        """Computes the logits after every token, for parity tests.

        Args:
            token_ids: the sequence, at least one id.
            stepwise: feed the tokens one by one through the KV cache, as decoding does, instead of in one prefill.

        Returns:
            float32 ``[tokens, vocab]``; row i follows token i.
        """

    def iter_logits(self, token_ids: Iterable[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Feeds a sequence to an empty KV cache as a generation would, and yields the logits along the way.

        Args:
            token_ids: the sequence, at least one id.
            steps: how many of the last tokens are fed one by one, as decoding does; the others are the prompt.

        Yields:
            After every prompt chunk and every step: the number of tokens fed so far, and the logits that the graph
            returned for the last of them, float32 ``[positions, vocab]``.
        """
        tokens = list(token_ids)  # this default, on top of ``logits``, computes all steps at once
        prompt = len(tokens) - steps
        if prompt:
            yield prompt, self.logits(tokens[:prompt])
        if steps:
            stepped = self.logits(tokens, stepwise=True)
            yield from ((end, stepped[end - 1 : end]) for end in range(prompt + 1, len(tokens) + 1))

    @abstractmethod
    def close(self) -> None:
        """Frees the model's memory; the engine cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
