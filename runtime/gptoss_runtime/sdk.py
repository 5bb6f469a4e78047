"""Provides an OpenAI client for a model on this machine; uses a running server or starts one.

    with serving("gptoss-nano") as client:
        answer = client.chat.completions.create(model="gptoss-nano", messages=[{"role": "user", "content": "hello"}])

Knows where servers listen and how to start and stop ``gptoss serve``, whose ``--json`` report says when the server is
ready or why it could not start. Everything else goes over HTTP.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gptoss_runtime import errors
from gptoss_runtime.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    GptOssError,
    InvalidRequest,
    ResourceError,
    ServerUnavailable,
)
from gptoss_runtime.machine import hardware
from gptoss_runtime.models import Registry
from gptoss_runtime.models.registry import is_path
from gptoss_runtime.server.settings import DEFAULT_HOST, DEFAULT_PORT

if TYPE_CHECKING:
    import openai

URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
_PROBE_SECONDS = 2.0
_GRACE_SECONDS = 15.0  # for a server to finish its answers and free its memory
_POLL_SECONDS = 0.05
_NO_KEY = "none"  # OpenAI's client requires a key


@contextmanager
def serving(
    model: str,
    *,
    url: str | None = None,
    api_key: str | None = None,
    artifacts: str | Path | None = None,
    provider: str | None = None,
    device: int | str | None = None,
    context_length: int | None = None,
    timeout: float = 180.0,
) -> Iterator[openai.OpenAI]:
    """Yields a client of a server that has a model, for the length of a ``with`` block.

    Args:
        model: a model's name; or the path of an artifact folder (with a separator in it), for which a server is always
            started and whose model name is in ``client.models.list()``.
        url: the server to use; ``None``: $GPTOSS_URL, or the server at the default port if it has the model, or else a
            new server on a free port with its own key, which is stopped at the end of the block.
        api_key: the key of that server; ``None``: $GPTOSS_API_KEY, or none.
        artifacts: for a new server: a folder with ``<name>/<target>/`` to search for models before the cache; ``None``:
            the folders in $GPTOSS_ARTIFACTS. The working folder is not searched.
        provider: for a new server: the execution provider.
        device: for a new server: the adapter.
        context_length: for a new server: the maximum context length, in tokens.
        timeout: seconds for a new server to start and load the model.

    Raises:
        ServerUnavailable: nothing answers at ``url``, or that server does not have the model; or a new server did not
            become ready in time.
        ModelNotFound: there is no such model on this machine.
        ArtifactError: its folder is damaged or does not exist.
        BackendUnavailable: the package openai, or a package that the server needs, is not installed.
        GptOssError: a new server could not start, for the reason that it reported.
    """
    key = api_key or os.environ.get("GPTOSS_API_KEY")
    named = url or os.environ.get("GPTOSS_URL")
    if named is not None:
        problem = _find_problem(named.rstrip("/"), model, key)
        if problem is not None:
            raise problem
        with _make_client(named, key) as client:
            yield client
    elif not is_path(model) and _find_problem(URL, model, key) is None:
        with _make_client(URL, key) as client:
            yield client
    else:
        search = None if artifacts is None else [Path(artifacts)]
        registry = Registry(search=search, working_folder=False)
        registry.resolve(model)  # reports an unknown name before a server is started
        own_key = secrets.token_urlsafe(24)
        options = {"--provider": provider, "--device": device, "--context-length": context_length}
        options["--artifacts"] = None if artifacts is None else str(artifacts)
        with _start_server(model, own_key, options, timeout) as own, _make_client(own, own_key) as client:
            yield client


def _make_client(url: str, key: str | None) -> openai.OpenAI:
    try:
        import openai
    except ImportError as error:
        raise BackendUnavailable(
            f"openai cannot be imported: {error}", remedy='pip install "gptoss-windows[sdk]"'
        ) from error
    return openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key or _NO_KEY)


@contextmanager
def _start_server(model: str, key: str, options: dict[str, str | int | None], timeout: float) -> Iterator[str]:
    """Starts a server, yields its URL, and stops it at the end of the block."""
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    # -P: without it, Python searches the working folder for modules first
    command = [sys.executable, "-P", "-m", "gptoss_runtime.cli.main", "serve", model, "--port", "0", "--json", *given]
    environment = os.environ | {"GPTOSS_API_KEY": key, "PYTHONIOENCODING": "utf-8"}
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # Windows signals whole groups only
    with tempfile.TemporaryDirectory(prefix="gptoss-", ignore_cleanup_errors=True) as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"  # files, because a full pipe would block the server
        with out.open("wb") as to_out, err.open("wb") as to_err:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
                env=environment,
                creationflags=flags,
            )
        try:
            yield _wait_until_ready(process, out, err, key, time.monotonic() + timeout)
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], out: Path, err: Path, key: str, until: float) -> str:
    """Waits until a server answers and has its model in memory; returns its URL."""
    while time.monotonic() < until:
        ended = process.poll() is not None  # before reading, so that the report of an ended process is complete
        report = _read_report(out)
        if ended:
            raise _startup_error(process.returncode, report, err.read_text(encoding="utf-8", errors="replace"))
        if "url" in report and _call(f"{report['url']}/health")[0] == 200:
            url: str = report["url"]
            _load(url, report["model"], key, until)
            return url
        time.sleep(_POLL_SECONDS)
    raise ServerUnavailable(
        "the server did not become ready in time", remedy="Set a longer timeout, or start it yourself: gptoss serve"
    )


def _read_report(out: Path) -> dict[str, Any]:
    """Returns the JSON object that ``gptoss serve --json`` has printed, or {} if it is not complete."""
    line, newline, _ = out.read_text(encoding="utf-8", errors="replace").partition("\n")
    return _parse_object(line) if newline else {}


def _load(url: str, model: str, key: str, until: float) -> None:
    left = max(_PROBE_SECONDS, until - time.monotonic())
    status, body = _call(f"{url}/openai/load/{quote(model, safe='')}", key, data=b"", timeout=left)
    if status != 200:
        kind = InvalidRequest if status == 400 else ServerUnavailable
        raise kind(
            f"the server could not load {model}: {_read_message(body, status)}", remedy=f"Run: gptoss doctor {model}"
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server with a signal, so that it ends its engine processes; kills it if that takes too long."""
    if process.poll() is None:
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM) if hardware.WINDOWS else signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _startup_error(code: int, report: dict[str, Any], stderr: str) -> GptOssError:
    """Returns the error that ``gptoss serve --json`` reported; without a report, one from its exit code and stderr."""
    kinds = (InvalidRequest, ArtifactError, BackendError, ResourceError)
    kind: type[GptOssError] = next((kind for kind in kinds if kind.exit_code == code), ServerUnavailable)
    reported = report.get("error")
    if not isinstance(reported, dict):
        return kind(
            f"the server ended with exit code {code}: {stderr[-500:].strip()}",
            remedy="Start it yourself to see more: gptoss serve",
        )
    named = getattr(errors, str(reported.get("type")), None)
    if isinstance(named, type) and issubclass(named, GptOssError):
        kind = named
    return kind(str(reported.get("message")), remedy=reported.get("remedy"))


def _find_problem(url: str, model: str, key: str | None) -> ServerUnavailable | None:
    """Returns why a server cannot be used for a model, or None if it can."""
    status, _ = _call(f"{url}/health")
    if status is None:
        return ServerUnavailable(f"nothing answers at {url}", remedy="Start it: gptoss serve")
    status, body = _call(f"{url}/v1/models/{quote(model, safe='')}", key)
    if status == 200:
        return None
    if status == 401:
        return ServerUnavailable(f"{url} requires an API key", remedy="Pass api_key, or set GPTOSS_API_KEY.")
    return ServerUnavailable(
        f"{url} does not have {model[:100]}: {_read_message(body, status)}",
        remedy=f"List its models: GET {url}/v1/models",
    )


def _read_message(body: dict[str, Any], status: int | None) -> str:
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or f"status {status}")


def _call(
    url: str, key: str | None = None, *, data: bytes | None = None, timeout: float = _PROBE_SECONDS
) -> tuple[int | None, dict[str, Any]]:
    """Returns status and JSON body, or None and {} if nothing answers; uses no proxy, since the server is local."""
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {key}"} if key else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return response.status, _parse_object(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parse_object(error.read())
    except (OSError, ValueError):
        return None, {}


def _parse_object(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
