"""The models in memory: loaded on demand, kept while in use, unloaded when idle too long or to make room.

All methods run in the event loop; loading and closing engines run in threads. Knows engines and the served models;
knows nothing of HTTP.
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
from gptoss_runtime.server.errors import BadRequest, Conflict, NotFound
from gptoss_runtime.server.prompt import warm_up
from gptoss_runtime.server.served_models import ServedModel, ServedModels

EngineLoader = Callable[[ServedModel], Engine]
log = logging.getLogger("gptoss.server")


@dataclass(slots=True)
class LoadedModel:
    """A model in memory.

    Args:
        model: which one.
        engine: its engine.
        harmony: its chat format.
        ttl: seconds without a request after which it is unloaded; ``None``: never.
        users: requests that use it now.
        last_used: when the last request ended, on ``time.monotonic``'s clock.
    """

    model: ServedModel
    engine: Engine
    harmony: Harmony
    ttl: float | None
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def expires(self) -> float:
        """When it is due to be unloaded, on ``time.monotonic``'s clock."""
        return float("inf") if self.ttl is None or self.users else self.last_used + self.ttl


class ModelLease:
    """Keeps a loaded model in memory until ``release``."""

    def __init__(self, name: str, loaded: LoadedModel, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.engine = loaded.engine
        self.harmony = loaded.harmony
        self._loaded: LoadedModel | None = loaded
        self._loop = loop
        loaded.users += 1

    def release(self) -> None:
        """Ends the lease; thread-safe and idempotent."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the host with it
            self._loop.call_soon_threadsafe(self._release_in_loop)

    def _release_in_loop(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.users -= 1
            loaded.last_used = time.monotonic()


class ModelHost:
    """Loads, leases and unloads models.

    Args:
        models: the models that can be loaded.
        load_engine: loads a model's engine.
        max_loaded: models in memory at once; one more replaces the least recently used idle one.
        ttl: seconds without a request after which a model is unloaded; ``None``: never.
        max_turns: requests that a model accepts at once, running and queued; more are refused.
        cache: where harmony's vocabulary is kept; ``None``: the user's cache.
    """

    def __init__(
        self,
        models: ServedModels,
        load_engine: EngineLoader,
        *,
        max_loaded: int = 1,
        ttl: float | None = None,
        max_turns: int = 68,
        cache: Path | None = None,
    ) -> None:
        self.models = models
        self._load_engine = load_engine
        self._max_loaded = max_loaded
        self._ttl = ttl
        self._max_turns = max_turns
        self._cache = cache
        self._loaded: dict[Path, LoadedModel] = {}
        self._loading: dict[Path, asyncio.Task[LoadedModel]] = {}
        self._paths: dict[str, Path] = {}  # by the names already requested, so that a request need not read the disk
        self._load_lock = asyncio.Lock()
        self._ttl_changed = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts to watch for idle models."""
        self._sweeper = asyncio.create_task(self._unload_idle_models())

    async def close(self) -> None:
        """Unloads everything."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._loading.values()):  # a load that ends removes itself
            with contextlib.suppress(Exception):
                await task
        for path in list(self._loaded):
            await self._unload(path)

    def list_loaded(self) -> list[LoadedModel]:
        """The models in memory."""
        return list(self._loaded.values())

    def context_length(self, model: ServedModel) -> int:
        """A model's context length: its engine's once it is loaded, which can be shorter than its artifact's."""
        loaded = self._loaded.get(model.path)
        return model.context_length if loaded is None else loaded.engine.info.context_length

    async def lease(self, name: str | None) -> ModelLease:
        """Leases a model, and loads it first if need be; the caller releases the lease.

        Args:
            name: the model; ``None``: the default.

        Raises:
            BadRequest: no name, and no default.
            ModelNotFound: no such model on this machine.
            Overloaded: the model accepts no more requests, or every loaded model is in use.
            GptOssError: it cannot be loaded.
        """
        name = self._resolve_name(name)
        loaded = await self._get(name, None)
        if loaded.users >= self._max_turns:
            raise Overloaded(
                f"{self._max_turns} requests run or wait for this model",
                remedy="Try again in a while.",
                retry_after=2.0,
            )
        return ModelLease(name, loaded, asyncio.get_running_loop())

    async def load(self, name: str, ttl: float | None = None) -> LoadedModel:
        """Loads a model unless it is loaded; ``ttl``, if given, replaces its own. Raises as ``lease``."""
        loaded = await self._get(name, ttl)
        loaded.last_used = time.monotonic()
        if ttl is not None:
            loaded.ttl = ttl
            self._ttl_changed.set()
        return loaded

    async def unload(self, name: str, *, force: bool = False) -> None:
        """Unloads a model and frees its memory.

        Args:
            name: the model.
            force: even while it answers; those answers end with an error.

        Raises:
            NotFound: it is not loaded.
            Conflict: it is answering.
        """
        path = self._paths.get(name)
        if path is None or path not in self._loaded:
            raise NotFound(f"{name[:80]!r} is not loaded", param="model", code="model_not_loaded")
        if self._loaded[path].users and not force:
            raise Conflict(f"{name} is answering", remedy="Try again when it is done, or add ?force=true.")
        await self._unload(path)

    def _resolve_name(self, name: str | None) -> str:
        name = name or self.models.default
        if name is None:
            raise BadRequest(
                "no model is named",
                param="model",
                code="missing_required_parameter",
                remedy="GET /v1/models lists those there are.",
            )
        return name

    async def _get(self, name: str, ttl: float | None) -> LoadedModel:
        path = self._paths.get(name)
        if path is not None and path in self._loaded:
            return self._loaded[path]
        model = await asyncio.to_thread(self.models.find, name)
        task = self._loading.get(model.path)
        if task is None:
            task = asyncio.create_task(self._load(model, ttl))
            self._loading[model.path] = task
            task.add_done_callback(lambda done: self._loading.pop(model.path, None) and done.exception())
        loaded = await asyncio.shield(task)  # a client that disconnects does not cancel the load
        self._paths[name] = model.path
        return loaded

    async def _load(self, model: ServedModel, ttl: float | None) -> LoadedModel:
        async with self._load_lock:
            if model.path in self._loaded:
                return self._loaded[model.path]
            await self._make_room()
            harmony, engine = await asyncio.to_thread(self._open, model)
            loaded = LoadedModel(model, engine, harmony, self._ttl if ttl is None else ttl)
            self._loaded[model.path] = loaded
            self._ttl_changed.set()
            log.info("loaded %s on %s", model.id, engine.info.provider)
            return loaded

    def _open(self, model: ServedModel) -> tuple[Harmony, Engine]:
        harmony = Harmony.load(model.path / TOKENIZER, cache=self._cache)  # before the engine: it fails sooner
        engine = self._load_engine(model)
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
            await self._unload(min(idle, key=lambda loaded: loaded.last_used).model.path)

    async def _unload(self, path: Path) -> None:
        loaded = self._loaded.pop(path, None)
        if loaded is not None:
            await asyncio.to_thread(loaded.engine.close)
            log.info("unloaded %s", loaded.model.id)

    async def _unload_idle_models(self) -> None:
        """Unloads models that have been idle for their ttl; looks four times per shortest ttl."""
        while True:
            self._ttl_changed.clear()
            now = time.monotonic()
            for path, loaded in list(self._loaded.items()):
                if loaded.expires <= now:
                    await self._unload(path)
            ttls = [loaded.ttl for loaded in self._loaded.values() if loaded.ttl is not None]
            interval = None if not ttls else max(0.05, min(ttls) / 4)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ttl_changed.wait(), interval)
