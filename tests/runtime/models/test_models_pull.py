"""Pulling from a hub on loopback: whole, cut, corrupted, twice at once, with no room; and what must never be kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gptoss_runtime.artifact.manifest import MANIFEST, FileEntry, Manifest, MemoryBudget, Source
from gptoss_runtime.artifact.safe_names import check_file_names, is_name, is_safe_path
from gptoss_runtime.cli.main import app
from gptoss_runtime.engine.loading import load_engine
from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.errors import ArtifactError, GptOssError, HubError, InvalidRequest, ModelNotFound, ResourceError
from gptoss_runtime.models import Catalogue, Hub, Model, Progress, Published, Record, Registry
from tests.runtime.models.hub_server import COMMIT, SECRET, SIGNATURE, HubServer, hub_server

NAME = "small"
WEIGHTS = "model.onnx.data"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub below is on this machine; nothing else may be asked, and no token of the user's sent."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An artifact of a few bytes: an empty graph, and weights that it does not use."""
    folder = tmp_path / "published"
    folder.mkdir()
    model = {"vocab_size": 9, "context_length": 4096, "eos_token_id": [1], "decoder": {"filename": "model.onnx"}}
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.onnx").write_bytes(b"\x08\x0b")
    (folder / WEIGHTS).write_bytes(os.urandom(3 << 20))
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    found = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    names = [name for name in found if name != MANIFEST]
    manifest = Manifest(
        name=NAME,
        target="cpu",
        preset="balanced",
        logits="last",
        requires={},
        source=Source(name=NAME, revision=None, files={}),
        groups={},
        memory=MemoryBudget(weights=1, kv_per_token=1, context=4096, peak=5000),
        tools={},
        files={name: FileEntry.from_file(folder / name) for name in names},
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())


def registry(hub: HubServer, cache: Path, *, subfolder: str = "cpu", revision: str = "main") -> Registry:
    source = Published(repository="someone/small", subfolder=subfolder, revision=revision)
    unknown = Published(repository="nobody/knows", subfolder=subfolder)
    catalogue = Catalogue(
        models={
            NAME: Model(aliases=("tiny",), variants={"cpu": source}),
            "unknown": Model(variants={"cpu": unknown}),
        }
    )
    return Registry(cache, search=[], catalogue=catalogue, hub=Hub(hub.endpoint))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_nano_is_pulled_and_answers(hub: HubServer, nano_artifact: Path, tmp_path: Path) -> None:
    hub.add(nano_artifact, "cpu/")
    hub.files["README.md"] = b"not asked for"
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
    assert models.pull(NAME) == pulled  # the same commit: nothing is fetched
    assert len(hub.asked) == asked


def test_a_cut_connection_is_gone_on_with(hub: HubServer, nano_artifact: Path, tmp_path: Path) -> None:
    hub.add(nano_artifact, "cpu/")
    hub.cuts[f"cpu/{WEIGHTS}"] = [30 << 20]
    assert registry(hub, tmp_path).pull(NAME).path is not None
    first, second = hub.gets(f"cpu/{WEIGHTS}")
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) >= 20 << 20


@pytest.mark.integration
def test_an_interrupted_pull_leaves_nothing_that_looks_whole(
    hub: HubServer, nano_artifact: Path, tmp_path: Path
) -> None:
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
    assert [path for path, _ in again] == [f"cpu/{MANIFEST}", f"cpu/{WEIGHTS}"]  # what was whole is not fetched twice
    assert again[1][1] is not None
    assert max(one.done for one in seen) == seen[-1].total


@pytest.mark.integration
def test_a_killed_pull_is_gone_on_with(hub: HubServer, nano_artifact: Path, tmp_path: Path) -> None:
    hub.add(nano_artifact, "cpu/")
    hub.pause = threading.Event()
    process = command(hub, tmp_path, "pull", NAME)
    while not hub.asked:
        assert process.poll() is None, process.communicate()[1]
    process.kill()
    process.communicate()
    hub.pause.set()
    assert registry(hub, tmp_path).list(here=True) == ()
    assert registry(hub, tmp_path).pull(NAME).path is not None  # the dead one's lock is gone with it


def command(hub: HubServer, cache: Path, *arguments: str) -> subprocess.Popen[str]:
    """``gptoss models`` in a process of its own."""
    catalogue = cache / "mine.json"
    models = registry(hub, cache).catalogue
    catalogue.write_text(models.model_dump_json(exclude_none=True), encoding="utf-8")
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "GPTOSS_CACHE": str(cache),
        "GPTOSS_CATALOGUE": str(catalogue),
        "GPTOSS_ARTIFACTS": str(cache / "none"),
    }
    line = [sys.executable, "-W", "error", "-m", "gptoss_runtime.cli.main", "models", *arguments]
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


@pytest.mark.integration
def test_two_pullers_at_once_fetch_once(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    hub.pause = threading.Event()
    both = [command(hub, tmp_path, "pull", NAME, "--json") for _ in range(2)]
    threading.Timer(2, hub.pause.set).start()
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out)["path"] == str(tmp_path / NAME / "cpu")
    assert len(hub.gets(f"cpu/{WEIGHTS}")) == 1


def test_the_second_puller_is_told_that_it_waits(hub: HubServer, small: Path, tmp_path: Path) -> None:
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


def test_a_corrupted_file_is_not_used_and_alone_fetched_again(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    good = hub.content(f"cpu/{WEIGHTS}")
    hub.files[f"cpu/{WEIGHTS}"] = good[:-1] + bytes([good[-1] ^ 1])
    models = registry(hub, tmp_path)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data did not come as the manifest lists it"):
        models.pull(NAME)
    assert models.list(here=True) == ()
    hub.files[f"cpu/{WEIGHTS}"] = good
    hub.asked.clear()
    assert models.pull(NAME).path is not None
    assert [path for method, path, _ in hub.asked if method == "GET"] == [f"cpu/{MANIFEST}", f"cpu/{WEIGHTS}"]


def test_a_new_version_takes_the_old_ones_place(hub: HubServer, small: Path, tmp_path: Path) -> None:
    (small / "old.txt").write_text("only in the old one")
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


def test_a_pinned_commit_that_is_here_asks_nobody(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path, revision=COMMIT)
    first = models.pull(NAME)
    hub.status["api"] = 500
    assert models.pull(NAME) == first


def test_a_crash_between_the_renames_is_mended(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path)
    path = models.pull(NAME).path
    assert path is not None
    path.rename(path.with_name(".cpu.old"))
    hub.asked.clear()
    assert models.pull(NAME).path == path
    assert hub.asked == []


def test_a_full_disk_is_told_before_anything_large(
    hub: HubServer, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(small, "cpu/")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ResourceError, match="GB of disk") as raised:
        registry(hub, tmp_path).pull(NAME)
    assert raised.value.remedy
    assert hub.gets(f"cpu/{WEIGHTS}") == []


def test_a_disk_that_fills_meanwhile(
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


EVIL = [
    "../evil",
    "cpu/../../evil",
    "/etc/passwd",
    "C:/Windows/win.ini",
    "cpu\\..\\evil",
    "NUL",
    "cpu/con.txt",
    "cpu/file:stream",
    "cpu/COM1",
    "cpu/trailing.",
    "cpu/trailing ",
    "cpu//double",
    "cpu/./dot",
    "cpu/nul\0byte",
    "cpu/Tokenizer.JSON",
]


@pytest.mark.parametrize("evil", EVIL)
def test_a_repository_that_leads_astray_is_refused(evil: str, hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    hub.files[evil] = b"evil"
    with pytest.raises(ArtifactError) as raised:
        registry(hub, tmp_path / "cache").pull(NAME)
    assert "Do not trust" in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*evil*"))
    assert hub.asked == []


@pytest.mark.parametrize("evil", ["../../evil", "NUL", "sub/../../x"])
def test_a_manifest_that_leads_astray_is_refused(evil: str, hub: HubServer, small: Path, tmp_path: Path) -> None:
    manifest = json.loads((small / MANIFEST).read_text())
    manifest["files"][evil] = {"size": 4, "sha256": "0" * 64}
    (small / MANIFEST).write_text(json.dumps(manifest))
    hub.add(small, "cpu/")
    with pytest.raises(ArtifactError, match="does not have a name that is safe"):
        registry(hub, tmp_path / "cache").pull(NAME)


def test_a_graph_that_leads_astray_is_refused(hub: HubServer, small: Path, tmp_path: Path) -> None:
    config = json.loads((small / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "../../model.onnx"
    (small / "genai_config.json").write_text(json.dumps(config))
    write_manifest(small)
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path)
    with pytest.raises(ArtifactError, match="outside itself"):
        models.pull(NAME)
    assert models.list(here=True) == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("genai_config.json", b"custom_ops_library", "custom_ops_library"),
        ("model.onnx", b"\x08\x0b\x3a\x0c\x0a\x0a\x22\x02Op\x3a\x04evil", "domain 'evil'"),
        ("second.onnx", b"\x08\x0b\x42\x06\x0a\x04evil", "domain 'evil'"),
        ("tokenizer.json", b'{"a": 1, "a": 2}', "duplicate key"),
        ("extra/tokenizer_config.json", b'{"a": NaN}', "not a JSON number"),
    ],
)
def test_what_is_more_than_data_is_refused_before_the_weights_are_fetched(
    name: str, content: bytes, words: str, hub: HubServer, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_runtime.models.pulling._LARGE", 1 << 20)
    if name == "genai_config.json":
        config = json.loads((small / name).read_text())
        config["model"]["decoder"]["session_options"] = {content.decode(): "evil.so"}
        content = json.dumps(config).encode()
    (small / name).parent.mkdir(exist_ok=True)
    (small / name).write_bytes(content)
    write_manifest(small)
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path / "cache")
    with pytest.raises(ArtifactError, match=words):
        models.pull(NAME)
    assert models.list(here=True) == ()
    assert hub.gets(f"cpu/{WEIGHTS}") == []


def test_a_repository_without_what_its_manifest_lists(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    del hub.files[f"cpu/{WEIGHTS}"]
    with pytest.raises(ArtifactError, match="missing or not of the size"):
        registry(hub, tmp_path).pull(NAME)
    del hub.files[f"cpu/{MANIFEST}"]
    with pytest.raises(ArtifactError, match=r"no cpu/manifest\.json"):
        registry(hub, tmp_path).pull(NAME)


@pytest.mark.parametrize(
    ("status", "revision", "name", "text"),
    [
        (403, "main", NAME, "terms accepted"),
        (429, "main", NAME, "status 429"),
        (503, "main", NAME, "status 503"),
        (None, "gone", NAME, "no such revision"),
        (None, "main", "unknown", "no such repository"),
    ],
)
def test_what_the_hub_refuses(
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
    with pytest.raises(HubError, match="told to stay offline"):
        models.pull(NAME)


def test_tokens_and_signed_addresses_stay_out_of_what_is_shown(
    hub: HubServer, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    hub.add(small, "cpu/")
    hub.status[f"cpu/{WEIGHTS}"] = 500
    said = ""
    for _ in range(2):
        try:
            registry(hub, tmp_path).pull(NAME)
        except GptOssError as error:
            said += str(error)
        hub.status.clear()
    shown = (
        said
        + "".join(capfd.readouterr())
        + "".join(one.getMessage() for one in caplog.records if "httpx" not in one.name)
    )
    assert "status 500" in said
    assert SECRET not in shown + caplog.text
    assert SIGNATURE not in shown
    assert not any(SECRET in path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))


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


def test_remove_clears_what_an_interrupted_pull_left(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    hub.files[f"cpu/{WEIGHTS}"] = os.urandom(3 << 20)
    models = registry(hub, tmp_path)
    with pytest.raises(ArtifactError):
        models.pull(NAME)
    assert (tmp_path / NAME / ".cpu.partial").exists()
    models.remove("small:cpu")
    assert [path.name for path in (tmp_path / NAME).iterdir() if not path.name.endswith(".lock")] == []


def test_the_command(hub: HubServer, small: Path, tmp_path: Path) -> None:
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


def test_what_has_no_subcommand_says_so() -> None:
    assert CliRunner().invoke(app, ["models", "fetch"]).exit_code == 2


@given(st.text(max_size=30))
def test_a_name_never_leaves_its_folder(text: str) -> None:
    if is_name(text):
        assert (Path("root") / text).parent == Path("root")
        assert text.isascii()
    if is_safe_path(text):
        check_file_names("someone/small", [text])
        assert Path(os.path.normpath(Path("root") / text)).parts[0] == "root"
        assert "\0" not in text
