"""Pulling from a hub on loopback: complete, interrupted, corrupted, concurrent, and without disk space."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gptoss_runtime.artifact.manifest import MANIFEST, Manifest
from gptoss_runtime.cli.main import app
from gptoss_runtime.engine.loading import load_engine
from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.errors import ArtifactError, HubError, InvalidRequest, ModelNotFound, ResourceError
from gptoss_runtime.models import Progress, Record
from tests.runtime.models.hub_server import COMMIT, HubServer
from tests.runtime.models.pulling import NAME, WEIGHTS, command, names, registry, write_manifest


@pytest.mark.integration
def test_a_pulled_nano_generates(hub: HubServer, nano_artifact: Path, tmp_path: Path) -> None:
    hub.add(nano_artifact, "cpu/")
    hub.files["README.md"] = b"not requested"
    seen: list[Progress] = []
    models = registry(hub, tmp_path)
    pulled = models.pull(NAME, progress=seen.append)
    assert pulled.path == tmp_path / NAME / "cpu" == models.resolve("TINY") == models.resolve("small:cpu")
    assert pulled.pulled == Record("someone/small", "main", "cpu", COMMIT)
    assert names(pulled.path) == names(nano_artifact) | {".pulled.json"}
    assert {path.name for path in pulled.path.parent.iterdir()} <= {".cpu.lock", "cpu"}
    downloads = [one for one in seen if one.stage == "download"]
    assert [one.done for one in downloads] == sorted(one.done for one in downloads)
    assert (
        downloads[-1].done
        == downloads[-1].total
        == sum(entry.size for entry in Manifest.read(nano_artifact).files.values())
    )
    assert hub.gets("README.md") == []
    assert all(hub.authorized)
    assert hub.leaked == []
    with load_engine(pulled.path, threads=1, verify=True) as engine:
        assert list(engine.generate([200006, 1428, 200008], GenerationOptions(max_new_tokens=2)))
    asked = len(hub.asked)
    assert models.pull(NAME) == pulled  # the same commit: nothing is downloaded
    assert len(hub.asked) == asked


def test_a_broken_connection_is_resumed(hub: HubServer, nano_artifact: Path, tmp_path: Path) -> None:
    hub.add(nano_artifact, "cpu/")
    hub.cuts[f"cpu/{WEIGHTS}"] = [30 << 20]
    assert registry(hub, tmp_path).pull(NAME).path is not None
    first, second = hub.gets(f"cpu/{WEIGHTS}")
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) >= 20 << 20


@pytest.mark.integration
def test_an_interrupted_pull_leaves_no_usable_variant(hub: HubServer, nano_artifact: Path, tmp_path: Path) -> None:
    hub.add(nano_artifact, "cpu/")
    models = registry(hub, tmp_path)

    def stop(progress: Progress) -> None:
        if progress.file.endswith(WEIGHTS) and progress.done > 40 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull(NAME, progress=stop)
    assert models.list(here=True) == ()
    with pytest.raises(ModelNotFound, match="not on this machine"):
        models.resolve(NAME)
    before = len(hub.asked)
    seen: list[Progress] = []
    assert models.pull(NAME, progress=seen.append).path is not None
    again = [(path, range_) for method, path, range_ in hub.asked[before:] if method == "GET"]
    assert [path for path, _ in again] == [
        f"cpu/{MANIFEST}",
        f"cpu/{WEIGHTS}",
    ]  # complete files are kept
    assert again[1][1] is not None
    assert max(one.done for one in seen) == seen[-1].total


@pytest.mark.integration
def test_a_killed_pull_is_resumed(hub: HubServer, nano_artifact: Path, tmp_path: Path) -> None:
    hub.add(nano_artifact, "cpu/")
    hub.pause = threading.Event()
    process = command(hub, tmp_path, "pull", NAME)
    while not hub.asked:
        assert process.poll() is None, process.communicate()[1]
    process.kill()
    process.communicate()
    hub.pause.set()
    assert registry(hub, tmp_path).list(here=True) == ()
    assert registry(hub, tmp_path).pull(NAME).path is not None  # the lock of the killed process is released


@pytest.mark.integration
def test_concurrent_pulls_download_once(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    hub.pause = threading.Event()
    both = [command(hub, tmp_path, "pull", NAME, "--json") for _ in range(2)]
    threading.Timer(2, hub.pause.set).start()
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out)["path"] == str(tmp_path / NAME / "cpu")
    assert len(hub.gets(f"cpu/{WEIGHTS}")) == 1


def test_the_second_pull_reports_that_it_waits(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small)
    models, stages, waiting = registry(hub, tmp_path, subfolder=""), [], threading.Event()

    def second(progress: Progress) -> None:
        stages.append(progress.stage)
        waiting.set()

    thread = threading.Thread(target=lambda: models.pull(NAME, progress=second))

    def first(progress: Progress) -> None:
        if not thread.ident:
            thread.start()
            assert waiting.wait(20)
            with pytest.raises(ResourceError, match="is being pulled"):
                models.remove(NAME)

    models.pull(NAME, progress=first)
    thread.join()
    assert stages == ["waiting"]
    assert names(tmp_path / NAME / "cpu") == names(small) | {".pulled.json"}


def test_only_a_corrupted_file_is_downloaded_again(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    good = hub.content(f"cpu/{WEIGHTS}")
    hub.files[f"cpu/{WEIGHTS}"] = good[:-1] + bytes([good[-1] ^ 1])
    models = registry(hub, tmp_path)
    with pytest.raises(ArtifactError, match=r"the downloaded model\.onnx\.data differs from the manifest"):
        models.pull(NAME)
    assert models.list(here=True) == ()
    hub.files[f"cpu/{WEIGHTS}"] = good
    hub.asked.clear()
    assert models.pull(NAME).path is not None
    assert [path for method, path, _ in hub.asked if method == "GET"] == [f"cpu/{MANIFEST}", f"cpu/{WEIGHTS}"]


def test_a_new_version_replaces_the_old_one(hub: HubServer, small: Path, tmp_path: Path) -> None:
    (small / "old.txt").write_text("only in the old version")
    write_manifest(small)
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path)
    path = models.pull(NAME).path
    assert path is not None
    (small / "old.txt").unlink()
    (small / "tokenizer.json").write_text('{"version": 2}')
    write_manifest(small)
    del hub.files["cpu/old.txt"]
    hub.revisions["main"] = "b" * 40
    hub.asked.clear()
    assert models.pull(NAME).pulled == Record("someone/small", "main", "cpu", "b" * 40)
    assert names(path) == names(small) | {".pulled.json"}
    assert (path / "tokenizer.json").read_text() == '{"version": 2}'


def test_a_pinned_commit_in_the_cache_needs_no_hub(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path, revision=COMMIT)
    first = models.pull(NAME)
    hub.status["api"] = 500
    assert models.pull(NAME) == first


def test_a_crash_between_the_renames_is_repaired(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path)
    path = models.pull(NAME).path
    assert path is not None
    path.rename(path.with_name(".cpu.old"))
    hub.asked.clear()
    assert models.pull(NAME).path == path
    assert hub.asked == []


def test_a_full_disk_is_reported_before_large_files(
    hub: HubServer, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(small, "cpu/")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ResourceError, match="GB of disk space") as raised:
        registry(hub, tmp_path).pull(NAME)
    assert raised.value.remedy
    assert hub.gets(f"cpu/{WEIGHTS}") == []


def test_a_disk_that_fills_during_the_download(
    hub: HubServer, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    hub.add(small, "cpu/")
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        registry(hub, tmp_path).pull(NAME)


def test_the_cache_is_a_file(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    (tmp_path / "cache").write_text("")
    with pytest.raises(ResourceError):
        registry(hub, tmp_path / "cache").pull(NAME)


@pytest.mark.parametrize(
    ("status", "revision", "name", "text"),
    [
        (403, "main", NAME, "requires accepting the repository's terms"),
        (429, "main", NAME, "status 429"),
        (503, "main", NAME, "status 503"),
        (None, "gone", NAME, "no such revision"),
        (None, "main", "unknown", "no such repository"),
    ],
)
def test_hub_errors(
    status: int | None, revision: str, name: str, text: str, hub: HubServer, small: Path, tmp_path: Path
) -> None:
    hub.add(small, "cpu/")
    if status is not None:
        hub.status["api"] = status
    with pytest.raises(HubError, match=text) as raised:
        registry(hub, tmp_path, revision=revision).pull(name)
    assert raised.value.exit_code == 8
    assert raised.value.remedy


def test_no_network(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = registry(HubServer(endpoint="http://127.0.0.1:9"), tmp_path)
    with pytest.raises(HubError, match="someone/small at main"):
        models.pull(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        models.pull(NAME)


def test_remove(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    own = tmp_path / "own" / "mine" / "cpu"
    shutil.copytree(small, own)
    models = registry(hub, tmp_path / "cache")
    models.search = (tmp_path / "own",)
    path = models.pull(NAME).path
    assert path is not None
    for name in ("mine", "mine:cpu", str(own), str(path), "small:directml", "..", "../own/mine"):
        with pytest.raises(InvalidRequest):
            models.remove(name)
    assert models.remove("tiny") == path
    assert not path.exists()
    assert own.exists()
    with pytest.raises(InvalidRequest, match="not in the cache"):
        models.remove("tiny")


def test_remove_deletes_an_interrupted_pull(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    hub.files[f"cpu/{WEIGHTS}"] = os.urandom(3 << 20)
    models = registry(hub, tmp_path)
    with pytest.raises(ArtifactError):
        models.pull(NAME)
    assert (tmp_path / NAME / ".cpu.partial").exists()
    models.remove("small:cpu")
    assert [path.name for path in (tmp_path / NAME).iterdir() if not path.name.endswith(".lock")] == []


def test_the_models_command(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")

    def run(*arguments: str) -> tuple[int, str, str]:
        process = command(hub, tmp_path, *arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    assert "on the hub" in run("list")[1]
    assert run("list", "--here", "--json") == (0, "[]\n", "")
    code, out, err = run("pull", "tiny")
    assert code == 0, err
    assert "small:cpu is in" in out
    [one] = json.loads(run("list", "--here", "--json")[1])
    assert (one["id"], one["where"], one["pulled"]["commit"]) == ("small:cpu", "cache", COMMIT)
    described = json.loads(run("info", "small", "--json")[1])
    assert (described["choice"]["target"], described["choice"]["provider"]) == ("cpu", "cpu")
    assert f"pulled from someone/small at {COMMIT}" in run("info", "small")[1]
    assert run("remove", "mine")[0] == 2
    assert json.loads(run("remove", "small", "--json")[1]) == {"removed": str(tmp_path / NAME / "cpu")}
    hub.status["api"] = 503
    code, out, err = run("pull", "small")
    assert (code, out) == (8, "")
    assert "error: someone/small at main: the hub answered with status 503" in err


def test_an_unknown_subcommand() -> None:
    assert CliRunner().invoke(app, ["models", "fetch"]).exit_code == 2
