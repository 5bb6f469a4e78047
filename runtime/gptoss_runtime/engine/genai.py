"""The engine on onnxruntime-genai; the only module that imports it.

Uses only what versions 0.13.1 (the last with DirectML for everyone) and 0.18 have in common. genai runs the graph and
holds the KV cache; ``sampling`` chooses the tokens. Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.artifact.folder import TOKENIZER, Artifact
from gptoss_runtime.engine.decoding import LogitsEngine
from gptoss_runtime.engine.genai_errors import convert_errors
from gptoss_runtime.engine.genai_model import load_model
from gptoss_runtime.engine.genai_providers import (
    check_provider,
    configure_provider,
    parse_device_index,
    redirect_stdout,
    suggest_alternative,
)
from gptoss_runtime.engine.kv_slots import KVSlotPool, common_prefix
from gptoss_runtime.engine.options import check_token_ids
from gptoss_runtime.engine.results import ModelInfo
from gptoss_runtime.errors import BackendError, BackendUnavailable, InvalidRequest
from gptoss_runtime.machine import preflight

# Devices whose KV cache genai can append a second prompt chunk to (SupportsContinuousDecoding in its generators.cpp).
_APPENDING_DEVICES = frozenset({"CPU", "CUDA", "WEBGPU"})
# Tokens per prompt chunk, by device. genai holds the interpreter's lock while it computes; between chunks other threads
# run and cancel takes effect. It also bounds a full lm_head's logits, 0.8 MB per token.
_PREFILL_CHUNK = {"CPU": 128}
_DEFAULT_PREFILL_CHUNK = 1024
_INITIAL_CAPACITY = 2048  # positions allocated at first; doubled when a sequence outgrows them
_ANSWER_CAPACITY = 1024  # positions allocated at first for an answer without a maximum length
_FORCED_LOGIT = np.float32(1e4)  # exceeds every real logit


def import_genai() -> ModuleType:
    """Imports onnxruntime-genai and turns its telemetry off.

    Raises:
        BackendUnavailable: it is not installed, or its libraries do not load.
    """
    try:
        import onnxruntime_genai
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"onnxruntime-genai cannot be imported: {error}",
            remedy='Install one build of it: pip install "gptoss-windows[cpu]" (or [directml], [cuda]).',
        ) from error
    disable_telemetry = getattr(onnxruntime_genai, "disable_telemetry_events", None)  # 0.13.1 has none
    if disable_telemetry is not None:
        disable_telemetry()
    return onnxruntime_genai  # type: ignore[no-any-return]


class GenaiEngine(LogitsEngine):
    """A model in onnxruntime-genai, with a pool of live generators whose KV caches are reused across requests.

    On devices that cannot append to a cache, a prompt is computed in one chunk and no idle cache is kept; there is one
    generator, or on DirectML as many as memory holds.

    Args:
        artifact: what to load.
        provider: this and the options below are as for ``load_engine``.
        device: the device index, or on "directml" any name of an adapter.
        threads: intra-op threads.
        context_length: the maximum context length.
        prefill_chunk: tokens per prompt chunk; ``None`` means the device's default.
        slots: number of generators to keep.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        provider: str = "cpu",
        device: int | str | None = None,
        threads: int | None = None,
        context_length: int | None = None,
        prefill_chunk: int | None = None,
        slots: int = 1,
    ) -> None:
        super().__init__(artifact.path / TOKENIZER)
        _check_load_options(threads=threads, context_length=context_length, prefill_chunk=prefill_chunk, slots=slots)
        check_provider(artifact, provider)
        longest, adapter, self.slots = artifact.context_length, None, slots
        if provider.lower() == "directml":
            budget = artifact.manifest.memory if artifact.manifest else None
            adapter, context_length = preflight.plan_directml(budget, device, longest, context_length)
            device = adapter.index
            self.slots = preflight.count_slots(budget, adapter, context_length, slots)
        checks = "gptoss inspect checks the folder, gptoss doctor the machine."
        self._remedy = f"{suggest_alternative(artifact.provider, provider)} {checks}".lstrip()
        self._genai = import_genai()
        self._model: Any = self._load(artifact, provider, device, threads)
        device_type = str(self._model.device_type).upper()
        self._can_append = device_type in _APPENDING_DEVICES
        self._chunk = prefill_chunk or _PREFILL_CHUNK.get(device_type, _DEFAULT_PREFILL_CHUNK)
        self.info = ModelInfo(
            name=artifact.name,
            target=artifact.target,
            provider=provider,
            context_length=min(context_length or longest, longest),
            vocab_size=artifact.vocab_size,
            eos_token_ids=artifact.eos_token_ids,
            device=adapter.name if adapter else None,
        )
        if not self._can_append and adapter is None:
            self.slots = 1
        # Idle caches may take as much as one full context, or with short contexts as the slots' initial capacity.
        idle_capacity = max(self.info.context_length, slots * _INITIAL_CAPACITY) if self._can_append else 0
        self._slots: KVSlotPool[_Sequence] = KVSlotPool(self.slots, idle_capacity)

    def _load(self, artifact: Artifact, provider: str, device: int | str | None, threads: int | None) -> Any:
        with convert_errors(f"loading {artifact.path}", remedy=self._remedy), redirect_stdout(provider):
            index = parse_device_index(device)

            def configure(config: Any) -> None:
                configure_provider(
                    self._genai,
                    config,
                    made_for=artifact.provider,
                    provider=provider,
                    device=index,
                    threads=threads,
                    vocab_size=artifact.vocab_size,
                )

            return load_model(self._genai, artifact, configure)

    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        """See ``Engine.logits``; if the graph returns only the last position's logits, tokens are fed one by one."""
        tokens = self._check_tokens(token_ids)
        if not stepwise:
            _, rows = next(self._feed(tokens, [len(tokens)]))
            if len(rows) == len(tokens):
                return rows
        result = np.empty((len(tokens), self.info.vocab_size), np.float32)
        for fed, row in self._feed(tokens, [1] * len(tokens)):
            result[fed - 1] = row
        return result

    def iter_logits(self, token_ids: Iterable[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See ``Engine.iter_logits``."""
        tokens = self._check_tokens(token_ids)
        prompt = len(tokens) - steps
        chunk = self._chunk if self._can_append else prompt
        sizes = [min(chunk, prompt - start) for start in range(0, prompt, max(1, chunk))]
        return self._feed(tokens, [*sizes, *[1] * steps])

    def _check_tokens(self, token_ids: Iterable[int]) -> list[int]:
        limit = self.info.context_length + (1 if self._can_append else 0)
        return check_token_ids(token_ids, vocab_size=self.info.vocab_size, context_length=limit)

    def _feed(self, tokens: list[int], sizes: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Feeds tokens to a new sequence in chunks of the given sizes; yields as ``iter_logits``."""
        self._check_open()
        sequence, fed = None, 0
        for size in sizes:
            with self._lock, convert_errors("computing logits", remedy=self._remedy):
                sequence = sequence or self._new_sequence(len(tokens) + 1)
                sequence.append(tokens[fed : fed + size])
                fed += size
                rows = sequence.chunk_logits(size)
            yield fed, rows

    def _check_open(self) -> None:
        if self._model is None:
            raise BackendError("the engine is closed", remedy="Load it again.")

    def close(self) -> None:
        """See ``Engine.close``."""
        with self._lock:
            self._slots.clear()
            self._model = None

    def _forward(self, tokens: list[int], *, owner: object, max_length: int) -> tuple[NDArray[np.float32] | None, int]:
        self._check_open()
        with convert_errors("generating", remedy=self._remedy):
            sequence = self._slots.take(tokens, owner)
            if sequence is not None and not sequence.continues(tokens, owner) and not self._rewind(sequence, tokens):
                sequence = None  # frees its KV cache before another is allocated
            if sequence is None:
                sequence = self._new_sequence(min(max_length, len(tokens) + _ANSWER_CAPACITY))
            cached = len(sequence.tokens)
            chunk = self._chunk if self._can_append else len(tokens)
            sequence.append(tokens[cached : cached + chunk])
            logits = sequence.last_logits() if len(sequence.tokens) == len(tokens) else None
        self._slots.put(sequence, owner)
        return logits, cached

    def _release(self, owner: object) -> None:
        self._slots.release(owner)
        if self._lock.acquire(blocking=False):
            try:
                self._slots.trim()
            finally:
                self._lock.release()

    def _discard(self, owner: object) -> None:
        self._slots.drop(owner)

    def _rewind(self, sequence: _Sequence, tokens: list[int]) -> bool:
        """Rewinds a sequence to its common prefix with ``tokens``; returns whether that is possible and not empty."""
        if not self._can_append or len(tokens) >= sequence.capacity:
            return False
        # At least one token is fed again: after a rewind genai still returns the logits of the longer sequence.
        shared = min(common_prefix(sequence.tokens, tokens), len(tokens) - 1)
        return shared > 0 and sequence.rewind(shared)

    def _new_sequence(self, length: int) -> _Sequence:
        """An empty sequence with capacity for ``length`` tokens; drops idle sequences if memory is short."""
        power_of_two = 1 << max(length - 1, _INITIAL_CAPACITY - 1).bit_length()
        capacity = min(power_of_two, self.info.context_length)
        try:
            return _Sequence(self, capacity)
        except (MemoryError, RuntimeError):
            if not self._slots.clear(idle=True):
                raise
        return _Sequence(self, capacity)


class _Sequence:
    """A genai Generator and the tokens in its KV cache.

    The last position of the cache stays empty: in a static cache it belongs to the attention sink.
    """

    def __init__(self, engine: GenaiEngine, capacity: int) -> None:
        genai, model = engine._genai, engine._model
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=capacity, do_sample=False, batch_size=1, num_beams=1)
        self.generator = genai.Generator(model, params)
        self.capacity = capacity
        self.tokens: list[int] = []
        self.owner: object = None
        self._can_append = engine._can_append

    def continues(self, tokens: list[int], owner: object) -> bool:
        """Whether ``tokens`` extend this sequence and fit. Its owner's tokens always extend it: nothing is compared."""
        return self.owner is owner and len(self.tokens) < len(tokens) < self.capacity

    def append(self, tokens: list[int]) -> None:
        """Computes ``tokens`` and adds them to the cache."""
        if self.tokens and not self._can_append:
            self._force_tokens(tokens)
        else:
            self.generator.append_tokens(np.asarray(tokens, dtype=np.int32))
        self.tokens.extend(tokens)

    def _force_tokens(self, tokens: list[int]) -> None:
        """Workaround for DirectML, which cannot append twice: makes genai's greedy search choose the given tokens."""
        for token in tokens:
            logits = np.zeros((1, 1, self.generator.get_logits().shape[-1]), np.float32)
            logits[..., token] = _FORCED_LOGIT
            self.generator.set_logits(logits)
            self.generator.generate_next_token()

    def last_logits(self) -> NDArray[np.float32]:
        """The next token's logits, float32 ``[vocab]``."""
        logits: NDArray[np.float32] = np.asarray(self.generator.get_logits(), dtype=np.float32)
        last: NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1]
        return last

    def chunk_logits(self, size: int) -> NDArray[np.float32]:
        """The logits that the graph returned for the last ``size`` tokens appended; float32 ``[positions, vocab]``."""
        if size == 1:
            return self.last_logits()[None]
        rows = np.asarray(self.generator.get_output("logits"), dtype=np.float32)
        return rows.reshape(-1, rows.shape[-1])

    def rewind(self, length: int) -> bool:
        """Truncates the sequence; returns False if genai no longer has the state (a sliding-window cache)."""
        self.owner = None
        if length == len(self.tokens):
            return True
        try:
            self.generator.rewind_to(length)
        except RuntimeError:
            return False
        del self.tokens[length:]
        return True


def _check_load_options(**options: int | None) -> None:
    for name, value in options.items():
        low = 2 if name == "context_length" else 1
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise InvalidRequest(f"{name} is {value!r}", remedy=f"Set {name} to a whole number of {low} or more.")
