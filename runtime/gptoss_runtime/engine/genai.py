"""The engine on onnxruntime-genai; the only module that imports it.

Written on the part of its API that 0.13.1 (the last with DirectML for everyone) and 0.18 share. genai runs the graph
and keeps the KV cache; tokens are chosen by ``sampling``. Knows nothing of text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.artifact.folder import TOKENIZER, Artifact
from gptoss_runtime.engine.decoding import LogitsEngine
from gptoss_runtime.engine.genai_model import load_model
from gptoss_runtime.engine.kv_slots import Slots, common_prefix
from gptoss_runtime.engine.options import check_token_ids
from gptoss_runtime.engine.results import ModelInfo
from gptoss_runtime.errors import BackendError, BackendUnavailable, InvalidRequest, ResourceError
from gptoss_runtime.machine import adapters, hardware, preflight


class Provider(NamedTuple):
    """An execution provider: genai's name for it (None: the CPU, there when none is named) and its adapter option."""

    name: str | None
    device_option: str = "device_id"


PROVIDERS = {
    "cpu": Provider(None),
    "directml": Provider("dml", "device_index"),  # read once: a process keeps the adapter of its first model
    "cuda": Provider("cuda"),
    "webgpu": Provider("webgpu"),
}
# Targets whose artifacts not every provider runs: those that don't (None: all but the target's own), and why.
_REFUSED: dict[str, tuple[frozenset[str] | None, str]] = {
    "cuda": (None, "its weights are laid out for cuda, which {provider} cannot read"),  # and would misread silently
    "directml": (
        frozenset({"cpu"}),
        "its graph keeps a cache of fixed size, which onnxruntime-genai does not run on the CPU",
    ),
}
# Devices on whose KV cache genai appends to a sequence it has begun (generators.cpp, SupportsContinuousDecoding)
_APPENDABLE = frozenset({"CPU", "CUDA", "WEBGPU"})
# genai holds the interpreter's lock while it computes, so a prompt is read in pieces: between them others run, and
# cancel takes effect. It also bounds the logits that a graph with a full lm_head gives: 0.8 MB a token.
_CHUNK = {"CPU": 128}
_CHUNK_ELSEWHERE = 1024
_FIRST_ROOM = 2048  # positions allocated at first; doubled when a sequence outgrows them
_ANSWER_ROOM = 1024  # positions an answer is given at first when its length is open
_COMMIT = np.float32(1e4)  # a logit that wins against any other

_MEMORY = re.compile(r"allocat|out of memory|bad_alloc", re.IGNORECASE)
_MISSING = re.compile(r"not been built with|Unknown provider|not (?:available|supported) in this build", re.IGNORECASE)
_LIBRARIES = re.compile(r"interface not available|failed to load (?:shared )?library", re.IGNORECASE)


def import_genai() -> ModuleType:
    """onnxruntime-genai, with its telemetry off.

    Raises:
        BackendUnavailable: it is not installed, or its libraries do not load.
    """
    try:
        import onnxruntime_genai
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"onnxruntime-genai cannot be imported: {error}",
            remedy='Install one build of it: pip install "gptoss-windows[cpu]" (or [directml], [cuda], [webgpu]).',
        ) from error
    silence = getattr(onnxruntime_genai, "disable_telemetry_events", None)  # 0.13.1 has none
    if silence is not None:
        silence()
    return onnxruntime_genai  # type: ignore[no-any-return]


@contextmanager
def native_errors(doing: str) -> Iterator[None]:
    """Turns what genai raises into this project's errors.

    Args:
        doing: what was being done, for the message: "loading the model".
    """
    try:
        yield
    except MemoryError as error:
        raise _memory_error(doing, "not enough memory") from error
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        explained = adapters.explain_native_error(doing, str(error))
        if explained is not None:
            raise explained from error
        if _MEMORY.search(text):
            raise _memory_error(doing, text) from error
        if _MISSING.search(text):
            raise BackendUnavailable(f"{doing}: {text}", remedy="Install the build for this provider.") from error
        if _LIBRARIES.search(text):
            raise BackendUnavailable(
                f"{doing}: {text}",
                remedy="Install what the provider loads; for CUDA: NVIDIA's driver, CUDA 13 and cuDNN 9, on the PATH.",
            ) from error
        raise BackendError(
            f"{doing}: {text}", remedy="Try --provider cpu; gptoss inspect checks the folder."
        ) from error


def _memory_error(doing: str, text: str) -> ResourceError:
    return ResourceError(f"{doing}: {text}", remedy="Close other programs, or load with a smaller context_length.")


class GenaiEngine(LogitsEngine):
    """A model in onnxruntime-genai, with live generators whose KV caches consecutive requests share.

    Args: as ``load_engine``; ``prefill_chunk`` is the number of prompt tokens computed at a time, ``slots`` how many
    generators may be kept. Where a device takes no second append, a prompt is read in one go and nothing idle is kept;
    there is one generator, or on DirectML as many as memory holds.
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
        _require_readable(artifact, provider)
        longest, adapter, self.slots = artifact.context_length, None, slots
        if provider.lower() == "directml":
            budget = artifact.manifest.memory if artifact.manifest else None
            adapter, context_length = preflight.plan_directml(budget, device, longest, context_length)
            device = adapter.index
            self.slots = preflight.count_slots(budget, adapter, context_length, slots)
        self._genai = import_genai()
        with native_errors(f"loading {artifact.path}"), _quiet(provider):
            index = _device_index(device)

            def configure(config: Any) -> None:
                _configure(self._genai, config, provider, index, threads, artifact.vocab_size)

            self._model: Any = load_model(self._genai, artifact, configure)
        kind = str(self._model.device_type).upper()
        self._appendable = kind in _APPENDABLE
        self._chunk = prefill_chunk or _CHUNK.get(kind, _CHUNK_ELSEWHERE)
        self.info = ModelInfo(
            name=artifact.name,
            target=artifact.target,
            provider=provider,
            context_length=min(context_length or longest, longest),
            vocab_size=artifact.vocab_size,
            eos_token_ids=artifact.eos_token_ids,
            device=adapter.name if adapter else None,
        )
        if not self._appendable and adapter is None:
            self.slots = 1
        # What is idle holds one full context, or in short contexts what all slots begin with.
        idle_room = max(self.info.context_length, slots * _FIRST_ROOM) if self._appendable else 0
        self._slots: Slots[_Sequence] = Slots(self.slots, idle_room)

    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        """See ``Engine.logits``; a graph that only gives the last position's is fed token by token."""
        tokens = self._checked(token_ids)
        if not stepwise:
            _, rows = next(self._fed(tokens, [len(tokens)]))
            if len(rows) == len(tokens):
                return rows
        result = np.empty((len(tokens), self.info.vocab_size), np.float32)
        for fed, row in self._fed(tokens, [1] * len(tokens)):
            result[fed - 1] = row
        return result

    def rows(self, token_ids: Iterable[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See ``Engine.rows``."""
        tokens = self._checked(token_ids)
        prompt = len(tokens) - steps
        piece = self._chunk if self._appendable else prompt
        sizes = [min(piece, prompt - at) for at in range(0, prompt, max(1, piece))]
        return self._fed(tokens, [*sizes, *[1] * steps])

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        limit = self.info.context_length + (1 if self._appendable else 0)
        return check_token_ids(token_ids, vocab_size=self.info.vocab_size, context_length=limit)

    def _fed(self, tokens: list[int], sizes: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        self._require_open()
        sequence, at = None, 0
        for size in sizes:
            with self._lock, native_errors("computing logits"):
                sequence = sequence or self._empty(len(tokens) + 1)
                sequence.append(tokens[at : at + size])
                at += size
                rows = sequence.rows(size)
            yield at, rows

    def _require_open(self) -> None:
        if self._model is None:
            raise BackendError("the engine is closed", remedy="Load it again.")

    def close(self) -> None:
        """See ``Engine.close``."""
        with self._lock:
            self._slots.clear()
            self._model = None

    def _advance(self, tokens: list[int], *, owner: object, room: int) -> tuple[NDArray[np.float32] | None, int]:
        self._require_open()
        with native_errors("generating"):
            sequence = self._slots.take(tokens, owner)
            if sequence is not None and not sequence.continues(tokens, owner) and not self._cut(sequence, tokens):
                sequence = None  # its KV cache is freed before another is allocated
            if sequence is None:
                sequence = self._empty(min(room, len(tokens) + _ANSWER_ROOM))
            cached = len(sequence.tokens)
            step = self._chunk if self._appendable else len(tokens)
            sequence.append(tokens[cached : cached + step])
            logits = sequence.logits() if len(sequence.tokens) == len(tokens) else None
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

    def _cut(self, sequence: _Sequence, tokens: list[int]) -> bool:
        """Cuts a sequence back to what it shares with ``tokens``; False where that cannot be, or is nothing."""
        if not self._appendable or len(tokens) >= sequence.room:
            return False
        # One token is always fed again: after a rewind genai's logits are still those of the longer sequence.
        shared = min(common_prefix(sequence.tokens, tokens), len(tokens) - 1)
        return shared > 0 and sequence.rewind(shared)

    def _empty(self, needed: int) -> _Sequence:
        """A sequence with room for as many positions; idle ones make way for it."""
        power = 1 << max(needed - 1, _FIRST_ROOM - 1).bit_length()
        room = min(power, self.info.context_length)
        try:
            return _Sequence(self, room)
        except (MemoryError, RuntimeError):
            if not self._slots.clear(idle=True):
                raise
        return _Sequence(self, room)


class _Sequence:
    """A genai Generator and the tokens in its KV cache.

    The cache's last position stays empty: in a static cache it is the attention sink's.
    """

    def __init__(self, engine: GenaiEngine, room: int) -> None:
        genai, model = engine._genai, engine._model
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=room, do_sample=False, batch_size=1, num_beams=1)
        self.generator = genai.Generator(model, params)
        self.room = room
        self.tokens: list[int] = []
        self.owner: object = None
        self._appendable = engine._appendable

    def continues(self, tokens: list[int], owner: object) -> bool:
        """Whether ``tokens`` are this sequence and more: sure by ownership, so nothing is compared."""
        return self.owner is owner and len(self.tokens) < len(tokens) < self.room

    def append(self, tokens: list[int]) -> None:
        """Computes ``tokens`` on top of the cache."""
        if self.tokens and not self._appendable:
            self._commit(tokens)
        else:
            self.generator.append_tokens(np.asarray(tokens, dtype=np.int32))
        self.tokens.extend(tokens)

    def _commit(self, tokens: list[int]) -> None:
        """The way round for DirectML, which takes no second append: make genai's greedy search pick our token."""
        for token in tokens:
            chosen = np.zeros((1, 1, self.generator.get_logits().shape[-1]), np.float32)
            chosen[..., token] = _COMMIT
            self.generator.set_logits(chosen)
            self.generator.generate_next_token()

    def logits(self) -> NDArray[np.float32]:
        """The next token's logits, float32 ``[vocab]``."""
        logits: NDArray[np.float32] = np.asarray(self.generator.get_logits(), dtype=np.float32)
        last: NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1]
        return last

    def rows(self, appended: int) -> NDArray[np.float32]:
        """What the graph gave after the last append of so many tokens, float32 ``[positions, vocab]``."""
        if appended == 1:
            return self.logits()[None]
        rows = np.asarray(self.generator.get_output("logits"), dtype=np.float32)
        return rows.reshape(-1, rows.shape[-1])

    def rewind(self, length: int) -> bool:
        """Cuts the sequence back; False where genai has dropped what is needed (a sliding-window cache)."""
        self.owner = None
        if length == len(self.tokens):
            return True
        try:
            self.generator.rewind_to(length)
        except RuntimeError:
            return False
        del self.tokens[length:]
        return True


def _check_load_options(**given: int | None) -> None:
    for name, value in given.items():
        low = 2 if name == "context_length" else 1
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise InvalidRequest(f"{name} is {value!r}", remedy=f"Set {name} to a whole number of {low} or more.")


def _require_readable(artifact: Artifact, provider: str) -> None:
    refused, why = _REFUSED.get(artifact.target, (frozenset(), ""))
    if provider.lower() == artifact.target or not (refused is None or provider.lower() in refused):
        return
    raise InvalidRequest(
        f"{artifact.path}: {why.format(provider=provider)}",
        remedy=f"Use --provider {artifact.target}, or convert the checkpoint for {provider}.",
    )


def _device_index(device: int | str | None) -> int | None:
    """An adapter's index; other ways to name one are for DirectML, and have become an index by now."""
    if device is None or (isinstance(device, int) and not isinstance(device, bool) and device >= 0):
        return device
    if isinstance(device, str) and device.isdecimal():
        return int(device)
    raise InvalidRequest(f"device is {str(device)[:80]!r}", remedy="Set device to a whole number of 0 or more.")


@contextmanager
def _quiet(provider: str) -> Iterator[None]:
    """What genai's DirectML build prints while it makes its device goes to stderr: stdout is the answer's."""
    if provider.lower() != "directml":
        yield
        return
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # a program without a console
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _configure(
    genai: ModuleType, config: Any, provider: str, device: int | None, threads: int | None, vocab_size: int
) -> None:
    """Sets a genai Config up for one execution provider, whatever provider it names."""
    known = PROVIDERS.get(provider.lower())
    name, device_option = known or Provider(provider)
    config.clear_providers()
    if name is not None:
        available = getattr(genai, f"is_{name}_available", None)
        if available is not None and not available():
            raise BackendUnavailable(
                f"this onnxruntime-genai has no {provider} execution provider",
                remedy=f'Install the build that has it: pip install "gptoss-windows[{provider.lower()}]", '
                "or use --provider cpu.",
            )
        config.append_provider(name)
        if device is not None:
            config.set_provider_option(name, device_option, str(device))
    model: dict[str, Any] = {}
    if name is None or threads is not None:
        model["decoder"] = {"session_options": {"intra_op_num_threads": threads or hardware.cpu().physical_cores}}
    if name == "dml":  # see _commit: after a stop token genai's search would go on with padding of its own
        model["eos_token_id"] = vocab_size
    if model:
        config.overlay(json.dumps({"model": model}))
