"""The models in memory: loaded when first asked for, kept while in use, unloaded when idle too long or in the way.

Everything here happens in the event loop except loading and closing, which run in threads. Knows engines and the
catalog; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_runtime.artifact.folder import TOKENIZER
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.base import Engine
from gptoss_runtime.errors import Overloaded
from gptoss_runtime.server.errors import Busy, NotThere, RequestRefused
from gptoss_runtime.server.served_models import ServedModel, ServedModels
from gptoss_runtime.server.turn import warm_up

EngineFactory = Callable[[ServedModel], Engine]
log = logging.getLogger("gptoss.server")


@dataclass(slots=True)
class Loaded:
    """A model in memory."""

    entry: ServedModel
    engine: Engine
    harmony: Harmony
    ttl: float | None
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def expires(self) -> float:
        """When it has been idle too long, on ``time.monotonic``'s clock."""
        return float("inf") if self.ttl is None or self.users else self.last_used + self.ttl


class HostLease:
    """A loaded model in use; see ``turn.Lease``."""

    def __init__(self, name: str, loaded: Loaded, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.engine = loaded.engine
        self.harmony = loaded.harmony
        self._loaded: Loaded | None = loaded
        self._loop = loop
        loaded.users += 1

    def release(self) -> None:
        """Gives it back; thread-safe, and may be called again."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the host with it
            self._loop.call_soon_threadsafe(self._give_back)

    def _give_back(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.users -= 1
            loaded.last_used = time.monotonic()


class ModelHost:
    """Loads and unloads.

    Args:
        catalog: which models there are.
        factory: makes an engine of one.
        max_loaded: models in memory at once; another takes the place of the one unused longest.
        ttl: seconds without a request after which a model is unloaded; ``None``: never.
        max_turns: requests that a model takes at once, running and waiting; more are refused.
        cache: where harmony's vocabulary is kept; ``None``: the user's cache.
    """

    def __init__(
        self,
        catalog: ServedModels,
        factory: EngineFactory,
        *,
        max_loaded: int = 1,
        ttl: float | None = None,
        max_turns: int = 68,
        cache: Path | None = None,
    ) -> None:
        self.catalog = catalog
        self._factory = factory
        self._max_loaded = max_loaded
        self._ttl = ttl
        self._max_turns = max_turns
        self._cache = cache
        self._loaded: dict[Path, Loaded] = {}
        self._loading: dict[Path, asyncio.Task[Loaded]] = {}
        self._names: dict[str, Path] = {}  # of models in memory, so that a request reads no disk
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to watch for idle models."""
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Unloads everything."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._loading.values():
            with contextlib.suppress(Exception):
                await task
        for path in list(self._loaded):
            await self._close(path)

    def loaded(self) -> list[Loaded]:
        """The models in memory."""
        return list(self._loaded.values())

    def context_length(self, entry: ServedModel) -> int:
        """Positions that a model has here: fewer in memory than its artifact's where memory is short."""
        loaded = self._loaded.get(entry.path)
        return entry.context_length if loaded is None else loaded.engine.info.context_length

    async def lease(self, name: str | None) -> HostLease:
        """A model in use, loaded if it is not; the caller gives it back.

        Raises:
            RequestRefused: no name, and no default.
            ModelNotFound: no such model here.
            Overloaded: it takes no more requests, or all memory is in use.
            GptOssError: it cannot be loaded.
        """
        name = self._named(name)
        loaded = await self._get(name, None)
        if loaded.users >= self._max_turns:
            raise Overloaded(
                f"{self._max_turns} requests run or wait for this model",
                remedy="Try again in a while.",
                retry_after=2.0,
            )
        return HostLease(name, loaded, asyncio.get_running_loop())

    async def load(self, name: str, ttl: float | None = None) -> Loaded:
        """Loads a model if it is not; ``ttl`` is its own from now on, where given. Raises as ``lease``."""
        loaded = await self._get(name, ttl)
        loaded.last_used = time.monotonic()
        if ttl is not None:
            loaded.ttl = ttl
            self._wake.set()
        return loaded

    async def unload(self, name: str, *, force: bool = False) -> None:
        """Gives a model's memory back.

        Args:
            name: the model.
            force: also in the middle of answers, which then end with an error.

        Raises:
            NotThere: it is not in memory.
            Busy: it is answering.
        """
        path = self._names.get(name)
        if path is None or path not in self._loaded:
            raise NotThere(f"{name[:80]!r} is not loaded", param="model", code="model_not_loaded")
        if self._loaded[path].users and not force:
            raise Busy(f"{name} is answering", remedy="Try again when it is done, or add ?force=true.")
        await self._close(path)

    def _named(self, name: str | None) -> str:
        name = name or self.catalog.default
        if name is None:
            raise RequestRefused(
                "no model is named",
                param="model",
                code="missing_required_parameter",
                remedy="GET /v1/models lists those there are.",
            )
        return name

    async def _get(self, name: str, ttl: float | None) -> Loaded:
        path = self._names.get(name)
        if path is not None and path in self._loaded:
            return self._loaded[path]
        entry = await asyncio.to_thread(self.catalog.find, name)
        task = self._loading.get(entry.path)
        if task is None:
            task = asyncio.create_task(self._load(entry, ttl))
            self._loading[entry.path] = task
            task.add_done_callback(lambda done: self._loading.pop(entry.path, None) and done.exception())
        loaded = await asyncio.shield(task)  # whoever waits may leave: the model is loaded all the same
        self._names[name] = entry.path
        return loaded

    async def _load(self, entry: ServedModel, ttl: float | None) -> Loaded:
        async with self._lock:
            if entry.path in self._loaded:
                return self._loaded[entry.path]
            await self._make_room()
            harmony, engine = await asyncio.to_thread(self._open, entry)
            loaded = Loaded(entry, engine, harmony, self._ttl if ttl is None else ttl)
            self._loaded[entry.path] = loaded
            self._wake.set()
            log.info("loaded %s on %s", entry.id, engine.info.provider)
            return loaded

    def _open(self, entry: ServedModel) -> tuple[Harmony, Engine]:
        harmony = Harmony.load(entry.path / TOKENIZER, cache=self._cache)  # first: it fails fast
        engine = self._factory(entry)
        try:
            warm_up(engine, harmony)
        except BaseException:
            engine.close()
            raise
        return harmony, engine

    async def _make_room(self) -> None:
        while len(self._loaded) >= self._max_loaded:
            idle = [loaded for loaded in self._loaded.values() if not loaded.users]
            if not idle:
                raise Overloaded(
                    "another model is answering, and there is room for no more",
                    remedy="Try again when it is done.",
                    retry_after=5.0,
                )
            await self._close(min(idle, key=lambda loaded: loaded.last_used).entry.path)

    async def _close(self, path: Path) -> None:
        loaded = self._loaded.pop(path, None)
        if loaded is not None:
            await asyncio.to_thread(loaded.engine.close)
            log.info("unloaded %s", loaded.entry.id)

    async def _sweep(self) -> None:
        """Unloads what has been idle too long, each time the next one may have."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            for path, loaded in list(self._loaded.items()):
                if loaded.expires <= now:
                    await self._close(path)
            waits = [loaded.ttl for loaded in self._loaded.values() if loaded.ttl is not None]
            pause = None if not waits else max(0.05, min(waits) / 4)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
