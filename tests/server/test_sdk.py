"""``serving``: finds or starts a server, yields OpenAI's own client, and leaves nothing running."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from gptoss_runtime import sdk
from gptoss_runtime.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    GptOssError,
    InvalidRequest,
    ModelNotFound,
    NoAdapter,
    Overloaded,
    ResourceError,
    ServerUnavailable,
)
from gptoss_runtime.sdk import serving

MODEL = "gptoss-nano"
PAGE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def own_machine(nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only nano is available, no server listens at the default port, and no process may be left running."""
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(sdk, "URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("GPTOSS_ARTIFACTS", str(nano_artifact.parents[1]))
        monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "cache"))
        for name in ("GPTOSS_URL", "GPTOSS_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        before = set(psutil.Process().children(recursive=True))
        yield
        _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=20)
        assert [one for one in alive if "serve" in one.cmdline()] == []


def ask(client: Any, model: str = MODEL) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is 27 + 45?"}],
        temperature=0,
        max_completion_tokens=100,
        reasoning_effort="low",
    )
    content: str = answer.choices[0].message.content
    return content


def is_listening(client: Any) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((client.base_url.host, client.base_url.port)) == 0


def test_server_is_started_reused_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(MODEL, context_length=512) as client:
        assert client.max_retries
        assert "72" in ask(client)
        url, key = str(client.base_url).removesuffix("/v1/"), client.api_key
        assert len(key) > 20  # not guessable
        with serving(MODEL, url=url, api_key=key) as other:
            assert other.base_url == client.base_url
            assert "72" in ask(other)
        monkeypatch.setenv("GPTOSS_URL", f"{url}/")
        monkeypatch.setenv("GPTOSS_API_KEY", key)
        with serving(MODEL) as by_environment:
            assert str(by_environment.base_url) == f"{url}/v1/"
        monkeypatch.delenv("GPTOSS_URL")
        monkeypatch.setattr(sdk, "URL", url)
        with serving(f"{MODEL}:cpu") as at_the_default_port:
            assert at_the_default_port.base_url == client.base_url
        with pytest.raises(ServerUnavailable, match="does not have other"), serving("other", url=url):
            pass
        with pytest.raises(ServerUnavailable, match="requires an API key"), serving(MODEL, url=url, api_key="wrong"):
            pass
        assert is_listening(client)
    assert not is_listening(client)


@pytest.mark.integration
def test_artifact_folder(nano_artifact: Path) -> None:
    with serving(str(nano_artifact), context_length=512) as client:
        [model] = [one.id for one in client.models.list() if ":" not in one.id]
        assert "72" in ask(client, model)


def test_server_stops_when_the_block_raises() -> None:
    with pytest.raises(ZeroDivisionError), serving(MODEL, context_length=512) as client:
        raise ZeroDivisionError
    assert not is_listening(client)


def test_no_server_at_the_url() -> None:
    with pytest.raises(ServerUnavailable, match="nothing answers at"), serving(MODEL, url=sdk.URL):
        pass


def test_unknown_models(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound), serving("gpt-oss-20b"):
        pass
    with pytest.raises(ModelNotFound), serving("nobody"):
        pass
    with pytest.raises(ArtifactError), serving("./nowhere"):
        pass
    with pytest.raises(ArtifactError) as raised, serving(str(tmp_path)):
        pass
    assert raised.value.remedy


def test_server_errors_are_raised() -> None:
    with pytest.raises(InvalidRequest) as raised, serving(MODEL, context_length=-5):
        pass
    assert "context_length" in raised.value.message.replace("-", "_")
    assert "exit code" not in raised.value.message  # from the report, not from stderr
    assert raised.value.remedy


def test_a_server_that_ends_without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer's own errors come before the command can report one: exit code and stderr are all there is."""
    length: Any = "long"
    with (
        pytest.raises(InvalidRequest, match=r"(?s)exit code 2.*context-length") as raised,
        serving(MODEL, context_length=length),
    ):
        pass
    assert "gptoss serve" in (raised.value.remedy or "")


@pytest.mark.parametrize(
    ("code", "reported", "kind"),
    [
        (6, {"type": "NoAdapter", "message": "m", "remedy": "r"}, NoAdapter),
        (6, {"type": "NotOurs", "message": "m", "remedy": "r"}, BackendError),
        (7, {"type": "annotations", "message": "m", "remedy": None}, ResourceError),
        (1, {"type": "Overloaded", "message": "m", "remedy": "r"}, Overloaded),
    ],
)
def test_the_reported_type_decides_the_error(code: int, reported: dict[str, Any], kind: type[GptOssError]) -> None:
    error = sdk._startup_error(code, {"error": reported}, "")
    assert type(error) is kind
    assert (error.message, error.remedy) == (reported["message"], reported["remedy"])


@pytest.mark.integration
def test_working_folder_provides_neither_code_nor_models(
    nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planted = f"open({str(tmp_path / 'it-ran')!r}, 'w')"
    for name in ("typer", "gptoss_runtime", "fastapi", "numpy"):
        (tmp_path / f"{name}.py").write_text(planted)
    with pytest.raises(InvalidRequest), serving(MODEL, context_length=-5):
        pass
    assert not (tmp_path / "it-ran").exists()
    shutil.copytree(nano_artifact, tmp_path / "artifacts" / "planted" / "cpu", copy_function=os.link)
    monkeypatch.delenv("GPTOSS_ARTIFACTS")
    with pytest.raises(ModelNotFound, match="planted"), serving("planted"):
        pass
    with serving("planted", artifacts="artifacts", context_length=512) as client:
        assert "72" in ask(client, "planted")


def test_start_timeout() -> None:
    with pytest.raises(ServerUnavailable, match="ready in time") as raised, serving(MODEL, timeout=0):
        pass
    assert raised.value.exit_code == 6


def test_openai_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(BackendUnavailable) as raised, serving(MODEL, context_length=512):
        pass
    assert raised.value.remedy == 'pip install "gptoss-windows[sdk]"'


@pytest.mark.integration
def test_examples_in_the_docs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(first, "sdk.md", "exec"), {})
    assert "72" in capsys.readouterr().out
    with serving(MODEL) as client:
        address = urlsplit(str(client.base_url)).netloc
        monkeypatch.setenv("GPTOSS_API_KEY", client.api_key)
        for example in others:
            exec(compile(example.replace("127.0.0.1:5272", address), "sdk.md", "exec"), {})
            assert capsys.readouterr().out
