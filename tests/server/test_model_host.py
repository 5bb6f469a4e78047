"""Models in memory: loaded on demand, evicted, unloaded when idle; and failures that leave nothing behind."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.engine.base import Engine
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.errors import ArtifactError, ModelNotFound, Overloaded, ResourceError
from gptoss_runtime.models import Registry
from gptoss_runtime.server.errors import BadRequest, Conflict, NotFound
from gptoss_runtime.server.metrics import Metrics
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.served_models import ServedModel, ServedModels
from tests.server.running import ENDLESS, MODEL, Running, ask, wait_until


class Factory:
    """Loads scripted engines and counts them."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.open = 0
        self.fails: Exception | None = None

    def __call__(self, model: ServedModel) -> Engine:
        if self.fails is not None:
            raise self.fails
        self.loaded.append(model.id)
        self.open += 1
        factory = self

        class Counted(ScriptedEngine):
            def close(self) -> None:
                factory.open -= 1

        return Counted([], tokenizer=model.path / "tokenizer.json")


@pytest.fixture
def folders(nano_artifact: Path) -> dict[str, Path]:
    return {"one": nano_artifact, "two": nano_artifact.parent / "second"}


@pytest.fixture(autouse=True)
def second(nano_artifact: Path) -> Any:
    """A second folder with the same files."""
    folder = nano_artifact.parent / "second"
    shutil.copytree(nano_artifact, folder)
    yield
    shutil.rmtree(folder)


def run_with_host(
    folders: dict[str, Path], vocabulary: Path, work: Callable[[ModelHost, Factory], Awaitable[None]], **options: Any
) -> None:
    """Runs ``work`` with a host in an event loop, and checks that no engine is left open."""
    factory = Factory()

    async def run() -> None:
        host = ModelHost(ServedModels(folders), factory, cache=vocabulary, **options)
        await host.start()
        try:
            await work(host, factory)
        finally:
            await host.close()

    asyncio.run(run())
    assert factory.open == 0


def test_concurrent_requests_load_a_model_once(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        leases = await asyncio.gather(*(host.lease("one") for _ in range(5)), host.lease(None))
        assert factory.loaded == ["one"]
        assert host.list_loaded()[0].users == 6
        for lease in leases:
            lease.release()
            lease.release()
        await asyncio.sleep(0)
        assert host.list_loaded()[0].users == 0

    run_with_host(folders, vocabulary, work)


def test_closing_the_host_waits_for_a_load(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        loading = [asyncio.create_task(host.load(name)) for name in ("one", "two")]
        while len(host._loading) < 2:
            await asyncio.sleep(0)
        await host.close()
        await asyncio.gather(*loading, return_exceptions=True)

    run_with_host(folders, vocabulary, work, max_loaded=2)


def test_least_recently_used_model_is_unloaded(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        lease = await host.lease("one")
        with pytest.raises(Overloaded):
            await host.load("two")
        lease.release()
        await host.load("two")
        assert [loaded.model.id for loaded in host.list_loaded()] == ["two"]
        assert factory.open == 1

    run_with_host(folders, vocabulary, work)


def test_idle_models_are_unloaded(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        lease = await host.lease("one")
        await host.load("two", ttl=10**6)
        await asyncio.sleep(0.3)
        assert len(host.list_loaded()) == 2  # one is in use, two has its own ttl
        lease.release()
        while len(host.list_loaded()) == 2:
            await asyncio.sleep(0.01)
        assert [loaded.model.id for loaded in host.list_loaded()] == ["two"]

    run_with_host(folders, vocabulary, work, ttl=0.1, max_loaded=2)


def test_failed_load_leaves_nothing(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        factory.fails = ResourceError("no memory")
        for _ in range(2):
            with pytest.raises(ResourceError):
                await host.lease("one")
        factory.fails = None
        (await host.lease("one")).release()

    run_with_host(folders, vocabulary, work)


def test_cancelled_request_does_not_cancel_the_load(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        cancelled = asyncio.create_task(host.lease("one"))
        await asyncio.sleep(0)
        cancelled.cancel()
        (await host.lease("one")).release()
        assert len(factory.loaded) <= 1

    run_with_host(folders, vocabulary, work)


def test_max_turns_is_enforced(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        await host.lease("one")
        await host.lease("one")
        with pytest.raises(Overloaded) as caught:
            await host.lease("one")
        assert caught.value.retry_after > 0

    run_with_host(folders, vocabulary, work, max_turns=2)


def test_unload(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        with pytest.raises(NotFound):
            await host.unload("one")
        await host.lease("one")
        with pytest.raises(Conflict):
            await host.unload("one")
        await host.unload("one", force=True)
        assert host.list_loaded() == []

    run_with_host(folders, vocabulary, work)


def test_unknown_and_missing_names(folders: dict[str, Path], vocabulary: Path) -> None:
    async def work(host: ModelHost, factory: Factory) -> None:
        with pytest.raises(ModelNotFound):
            await host.lease(str(folders["one"]))
        host.models.default = None
        with pytest.raises(BadRequest):
            await host.lease(None)

    run_with_host(folders, vocabulary, work)


def test_damaged_folder_is_not_listed(folders: dict[str, Path]) -> None:
    (folders["two"] / "genai_config.json").write_text("{", encoding="utf-8")
    served = ServedModels(folders)
    assert [model.id for model in served.list_models()] == ["one"]
    with pytest.raises(ArtifactError):
        served.find("two")


def test_registry_models_are_served(nano_artifact: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path, search=[nano_artifact.parents[1]])
    served = ServedModels.from_argument(None, registry)
    assert f"{MODEL}:cpu" in [model.id for model in served.list_models()]
    assert served.find(f"{MODEL}:cpu").path == nano_artifact.resolve()
    with pytest.raises(ModelNotFound) as raised:
        served.find(str(nano_artifact))
    assert raised.value.remedy is not None
    assert raised.value.remedy.endswith("GET /v1/models lists those on this machine.")
    named = ServedModels.from_argument(str(nano_artifact), registry)
    assert named.default == Artifact.open(nano_artifact).name
    assert [model.path for model in named.list_models()].count(nano_artifact.resolve()) == 1


def test_foundry_routes(serve: Callable[..., AbstractContextManager[Running]]) -> None:
    with serve() as running, httpx.Client(base_url=running.url, timeout=60) as http:
        assert http.get("/openai/models").json() == [MODEL]
        assert http.get("/openai/loadedmodels").json() == []
        [listed] = http.get("/foundry/list").json()["models"]
        assert (listed["name"], listed["runtime"]["deviceType"]) == (MODEL, "CPU")
        assert http.get("/openai/status").json()["endpoints"] == [running.url]
        assert http.post("/openai/load/nothing").status_code == 404
        assert http.post(f"/openai/load/{MODEL}?ttl=-1").status_code == 400
        assert http.post(f"/openai/load/{MODEL}?ttl=600").json()["loaded"]
        assert http.get("/openai/loadedmodels").json() == [MODEL]
        model = http.get(f"/v1/models/{MODEL}").json()
        assert model["context_length"] == http.get("/v1/models").json()["data"][0]["context_length"] == 4096
        assert http.post(f"/openai/unload/{MODEL}").json() == {"model": MODEL, "loaded": False}
        assert http.post(f"/openai/unload/{MODEL}").status_code == 404
        assert http.get(f"/openai/load/{MODEL}").status_code == 200
        assert http.get(f"/openai/unload/{MODEL}").status_code == 200
        assert http.get("/health").json() == {"status": "ok"}


def test_model_can_be_unloaded_as_soon_as_it_has_answered(
    serve: Callable[..., AbstractContextManager[Running]], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_ended = Metrics.turn_ended

    def slow(self: Metrics, ends: Any, *, had_token: bool) -> None:
        time.sleep(0.3)  # the turn's thread is slower than the client
        turn_ended(self, ends, had_token=had_token)

    monkeypatch.setattr(Metrics, "turn_ended", slow)
    with serve() as running, httpx.Client(base_url=running.url, timeout=60) as http:
        assert http.post("/v1/chat/completions", json=ask("hello")).status_code == 200
        assert http.post(f"/openai/unload/{MODEL}").status_code == 200
        for path, body, last in (
            ("responses", {"model": MODEL, "input": "hello", "max_output_tokens": 9}, "event: response.incomplete"),
            ("chat/completions", ask("hello"), '"finish_reason":"'),
        ):
            with http.stream("POST", f"/v1/{path}", json={**body, "stream": True}) as answer:
                assert next(line for line in answer.iter_lines() if last in line)
                assert httpx.post(f"{running.url}/openai/unload/{MODEL}", timeout=60).status_code == 200


@pytest.mark.integration
def test_unload_frees_memory(serve: Callable[..., AbstractContextManager[Running]]) -> None:
    with serve() as running, httpx.Client(base_url=running.url, timeout=60) as http:
        http.post("/v1/chat/completions", json=ask("hello"))
        engine: Any = running.host.list_loaded()[0].engine
        assert engine.alive
        assert http.post(f"/openai/unload/{MODEL}").status_code == 200
        assert not engine.alive
        assert http.post("/v1/chat/completions", json=ask("hello")).status_code == 200  # loaded again on demand


@pytest.mark.integration
def test_forced_unload_ends_answers(serve: Callable[..., AbstractContextManager[Running]]) -> None:
    with serve() as running, httpx.Client(base_url=running.url, timeout=60) as http:
        with http.stream("POST", "/v1/chat/completions", json={**ENDLESS, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert httpx.post(f"{running.url}/openai/unload/{MODEL}").status_code == 409
            assert httpx.post(f"{running.url}/openai/unload/{MODEL}?force=true").status_code == 200
            rest = list(lines)
        assert any('"error"' in line for line in rest)
        assert http.post("/v1/chat/completions", json=ask("hello")).status_code == 200


@pytest.mark.integration
def test_killed_engine_fails_only_running_answers(serve: Callable[..., AbstractContextManager[Running]]) -> None:
    with serve() as running, httpx.Client(base_url=running.url, timeout=60) as http:
        with http.stream("POST", "/v1/chat/completions", json={**ENDLESS, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            _kill_engine(running)
            rest = list(lines)
        assert any('"error"' in line for line in rest)
        again = http.post("/v1/chat/completions", json=ask("What is 27 + 45?")).json()
        assert again["choices"][0]["message"]["content"] == "27 + 45 = 72"


def _kill_engine(running: Running) -> None:
    import psutil

    engine: Any = running.host.list_loaded()[0].engine
    psutil.Process(engine.pid).kill()


def test_turn_threads_end(server: Running, http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json=ask("hello"))
    wait_until(lambda: not any(thread.name == "gptoss-turn" for thread in threading.enumerate()))
