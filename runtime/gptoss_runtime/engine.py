"""The seam: token ids in, token ids out, with cancel, an honest finish reason, usage and timings.

``Engine`` is what the rest of the runtime is written against; ``Engine.load`` picks the implementation. Knows nothing
of text, tokenisation or harmony, and nothing of onnxruntime-genai.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.options import GenerationOptions


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
    ``gptoss_runtime.process.ProcessEngine`` does.
    """

    info: ModelInfo
    slots: int = 1  # KV caches: generations that can run at once

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        provider: str = "cpu",
        device: int | str | None = None,
        threads: int | None = None,
        context_length: int | None = None,
        slots: int = 1,
        verify: bool = False,
    ) -> Engine:
        """Opens an artifact and makes it ready to generate.

        Args:
            path: the artifact folder.
            provider: the execution provider: "cpu", "directml", "cuda", "webgpu" or a name onnxruntime knows.
            device: the adapter's index, for providers that have several; "directml" also takes its LUID or name, and
                by default the usable one with the most memory.
            threads: intra-op threads; ``None``: one a physical core.
            context_length: at most this many positions, to spend less memory; ``None``: the artifact's, or on
                "directml" as many as the adapter's memory holds.
            slots: KV caches to keep, each as long as its sequence; ``engine.slots`` says how many there are: on
                "directml" no more than its memory holds.
            verify: check every file against the manifest's sha256 first.

        Raises:
            ArtifactError: the folder is missing, damaged or unsafe.
            BackendUnavailable: onnxruntime-genai or the provider is not installed.
            DeviceError: no adapter, or not a usable one.
            BackendError: it could not load the model.
            ResourceError: there is not enough memory.
            InvalidRequest: an option out of its range.
        """
        from gptoss_runtime.artifact import Artifact
        from gptoss_runtime.genai import GenaiEngine

        artifact = Artifact.open(path, verify=verify)
        return GenaiEngine(
            artifact, provider=provider, device=device, threads=threads, context_length=context_length, slots=slots
        )

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
