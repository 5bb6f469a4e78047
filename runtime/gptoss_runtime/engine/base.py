"""The engine's interface: token ids in, token ids out, with cancellation, a finish reason, usage and timings.

The rest of the runtime is written against ``Engine`` and ``Generation``; ``gptoss_runtime.engine.loading.load_engine``
picks the implementation. Knows nothing of text, tokenisation or harmony, and nothing of its implementations.
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
    """A running generation: iterate for the token ids, the stop token included, each as soon as it is known.

    ``cancel`` may be called from any thread, also while the prompt is being read; iteration then ends within one token
    (one chunk of the prompt) and the engine stays usable. ``result`` is there once iteration ended, also by an error.
    ``logprobs`` has an entry for every id given out so far if the options ask for them, and is empty otherwise.

    Iteration raises ``NumericalError`` where the model's logits are not finite, another ``GptOssError`` where the
    engine fails otherwise; ``result`` then has the finish reason "error" and counts the ids given out before.
    """

    def __init__(self) -> None:
        self._cancel = threading.Event()
        self._result: GenerationResult | None = None
        self.logprobs: list[TokenLogprobs] = []

    def cancel(self) -> None:
        """Asks the generation to end; thread-safe, returns at once."""
        self._cancel.set()

    @property
    def result(self) -> GenerationResult:
        """How it went.

        Raises:
            RuntimeError: iteration has not ended yet.
        """
        if self._result is None:
            raise RuntimeError("the generation has not ended: iterate it to its end, or close it")
        return self._result

    @abstractmethod
    def close(self) -> None:
        """Ends the generation now; ``result`` says "cancelled" if it had not ended by itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Engine(ABC):
    """A loaded model.

    Safe to use from several threads; generations that run at once take turns and do not disturb each other's tokens.
    More of them than ``slots`` share a KV cache, so that each turn costs a prefill: queue them instead, as
    ``gptoss_runtime.engine_process.engine.ProcessEngine`` does.
    """

    info: ModelInfo
    slots: int = 1  # KV caches: generations that can run at once

    @abstractmethod
    def generate(self, token_ids: Iterable[int], options: GenerationOptions | None = None) -> Generation:
        """Starts a generation; the work is done as the result is iterated.

        Args:
            token_ids: the prompt, at least one id.
            options: ``None``: the defaults.

        Raises:
            InvalidRequest: the prompt or an option cannot be served; nothing was started.
            ContextOverflow: the prompt leaves no room for an answer.
        """

    @abstractmethod
    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        """The logits after every token, for tests of parity.

        Args:
            token_ids: the sequence, at least one id.
            stepwise: feed the tokens one by one through the KV cache, as decoding does, and not in one prefill.

        Returns:
            float32 ``[tokens, vocab]``; row i follows token i.
        """

    def rows(self, token_ids: Iterable[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Reads a sequence into an empty KV cache as a generation reads its prompt, to compare its logits.

        Args:
            token_ids: the sequence, at least one id.
            steps: of its tokens, the last are fed one by one, as decoding does.

        Yields:
            After every piece of the prompt and after every step how many tokens were fed, and the logits of the last
            of them that the graph gives, float32 ``[positions, vocab]``.
        """
        tokens = list(token_ids)  # an engine that only has ``logits`` computes the steps at once
        prompt = len(tokens) - steps
        if prompt:
            yield prompt, self.logits(tokens[:prompt])
        if steps:
            stepped = self.logits(tokens, stepwise=True)
            yield from ((end, stepped[end - 1 : end]) for end in range(prompt + 1, len(tokens) + 1))

    @abstractmethod
    def close(self) -> None:
        """Gives the model's memory back; the engine cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
