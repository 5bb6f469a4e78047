"""An OpenAI client of a model on this machine: of the server that runs already, or of one started for the purpose.

    with serving("gptoss-nano") as client:
        answer = client.chat.completions.create(model="gptoss-nano", messages=[{"role": "user", "content": "hello"}])

Knows where servers listen and how ``gptoss serve`` is started and ended; speaks to it over HTTP only.
"""

from __future__ import annotations

import json
import os
import re
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
from typing import TYPE_CHECKING
from urllib.parse import quote

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
_GRACE_SECONDS = 15.0  # for a server to end its answers and give its memory back
_POLL_SECONDS = 0.05
_NO_KEY = "none"  # OpenAI's client wants one


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
    """A client of a server that has a model, for the length of a ``with`` block.

    Args:
        model: a model's name; or an artifact folder (with a separator in it), for which a server is always started and
            whose name ``client.models.list()`` tells.
        url: the server to use; ``None``: $GPTOSS_URL, or one at the usual port if it has the model, or else one that is
            started here, on a free port, with a key of its own, and ended with the block.
        api_key: what that server asks for; ``None``: $GPTOSS_API_KEY, or none.
        artifacts: the folder with ``<name>/<target>/`` in which a server that is started looks for models, before the
            cache; ``None``: those in $GPTOSS_ARTIFACTS, and not the working folder's.
        provider: the execution provider of a server that is started.
        device: its adapter.
        context_length: its positions at most.
        timeout: seconds for a server to start and load the model.

    Raises:
        ServerUnavailable: nothing answers at ``url``, or it does not have the model; or a server that was started did
            not become ready in time.
        ModelNotFound: there is no such model on this machine.
        ArtifactError: its folder is damaged, or none.
        BackendUnavailable: the package openai is missing, or one that the server needs.
        GptOssError: why the server that was started ended, as ``gptoss serve`` said it.
    """
    key = api_key or os.environ.get("GPTOSS_API_KEY")
    named = url or os.environ.get("GPTOSS_URL")
    if named is not None:
        problem = _problem(named.rstrip("/"), model, key)
        if problem is not None:
            raise problem
        with _client(named, key) as client:
            yield client
    elif not is_path(model) and _problem(URL, model, key) is None:
        with _client(URL, key) as client:
            yield client
    else:
        search = None if artifacts is None else [Path(artifacts)]
        registry = Registry(search=search, working_folder=False)
        registry.resolve(model)  # says what is wrong with a name before anything is started
        own_key = secrets.token_urlsafe(24)
        options = {"--provider": provider, "--device": device, "--context-length": context_length}
        options["--artifacts"] = None if artifacts is None else str(artifacts)
        with _started(model, own_key, options, timeout) as own, _client(own, own_key) as client:
            yield client


def _client(url: str, key: str | None) -> openai.OpenAI:
    try:
        import openai
    except ImportError as error:
        raise BackendUnavailable(
            f"openai cannot be imported: {error}", remedy='pip install "gptoss-windows[sdk]"'
        ) from error
    return openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key or _NO_KEY)


@contextmanager
def _started(model: str, key: str, options: dict[str, str | int | None], timeout: float) -> Iterator[str]:
    """A server of our own: its address."""
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    # -P: Python would look for its modules in the working folder first
    command = [sys.executable, "-P", "-m", "gptoss_runtime.cli.main", "serve", model, "--port", "0", "--json", *given]
    environment = os.environ | {"GPTOSS_API_KEY": key, "PYTHONIOENCODING": "utf-8"}
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # on Windows only a group can be told to end
    with tempfile.TemporaryDirectory(prefix="gptoss-", ignore_cleanup_errors=True) as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
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
            yield _ready(process, out, err, key, time.monotonic() + timeout)
        finally:
            _end(process)


def _ready(process: subprocess.Popen[bytes], out: Path, err: Path, key: str, until: float) -> str:
    """Waits until a server answers and has its model in memory."""
    while time.monotonic() < until:
        if process.poll() is not None:
            raise _said(process.returncode, err.read_text(encoding="utf-8", errors="replace"))
        announced = _announced(out)
        if announced is not None and _call(f"{announced['url']}/health")[0] == 200:
            _load(announced["url"], announced["model"], key, until)
            return announced["url"]
        time.sleep(_POLL_SECONDS)
    raise ServerUnavailable(
        "the server did not become ready in time", remedy="Give it a longer timeout, or start it by hand: gptoss serve"
    )


def _announced(out: Path) -> dict[str, str] | None:
    line, newline, _ = out.read_text(encoding="utf-8", errors="replace").partition("\n")
    found: dict[str, str] = json.loads(line) if newline else {}
    return found or None


def _load(url: str, model: str, key: str, until: float) -> None:
    left = max(_PROBE_SECONDS, until - time.monotonic())
    status, body = _call(f"{url}/openai/load/{quote(model, safe='')}", key, data=b"", timeout=left)
    if status != 200:
        kind = InvalidRequest if status == 400 else ServerUnavailable
        raise kind(f"the server could not load {model}: {_message(body, status)}", remedy="gptoss doctor may say more.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Gracefully, so that the engine's process ends with it; then not."""
    if process.poll() is None:
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM) if hardware.WINDOWS else signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said(code: int, text: str) -> GptOssError:
    """The error that ``gptoss serve`` ended with, by its exit code: "error: what", then what to do."""
    kinds = (InvalidRequest, ArtifactError, BackendError, ResourceError)
    kind = next((kind for kind in kinds if kind.exit_code == code), ServerUnavailable)
    found = re.search(r"^error: (.*)\n?((?s:.*))", text, re.MULTILINE)
    if found is None:
        return kind(
            f"the server ended with code {code}: {text[-500:].strip()}", remedy="Start it by hand: gptoss serve"
        )
    return kind(found[1], remedy=found[2].strip() or None)


def _problem(url: str, model: str, key: str | None) -> ServerUnavailable | None:
    """Why a server cannot be used for a model; None if it can."""
    status, _ = _call(f"{url}/health")
    if status is None:
        return ServerUnavailable(f"nothing answers at {url}", remedy="Start it: gptoss serve")
    status, body = _call(f"{url}/v1/models/{quote(model, safe='')}", key)
    if status == 200:
        return None
    if status == 401:
        return ServerUnavailable(f"{url} asks for an API key", remedy="Pass api_key, or set GPTOSS_API_KEY.")
    return ServerUnavailable(
        f"{url} does not have {model[:100]}: {_message(body, status)}", remedy="See what it has: GET /v1/models"
    )


def _message(body: dict[str, object], status: int | None) -> str:
    error = body.get("error")
    said = error.get("message") if isinstance(error, dict) else None
    return str(said or f"status {status}")


def _call(
    url: str, key: str | None = None, *, data: bytes | None = None, timeout: float = _PROBE_SECONDS
) -> tuple[int | None, dict[str, object]]:
    """Status and JSON; None where nothing answers. No proxy: the server is here."""
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {key}"} if key else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return response.status, _object(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _object(error.read())
    except (OSError, ValueError):
        return None, {}


def _object(data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
