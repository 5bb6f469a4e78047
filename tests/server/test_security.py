"""Who may call: Host, Origin, API key, content type and address; and what logs contain."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from gptoss_runtime.errors import InvalidRequest
from gptoss_runtime.server.settings import Settings, is_loopback
from tests.server.running import MODEL, Running, ask

Serve = Callable[..., AbstractContextManager[Running]]
KEY = "correct horse battery staple"


def send(
    port: int, headers: list[tuple[str, str]], method: str = "GET", path: str = "/v1/models", body: bytes = b""
) -> Any:
    """Sends a request with exactly these headers; returns its status, headers and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), json.loads(text) if text.startswith(b"{") else text


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_own_hosts_are_accepted(server: Running, name: str) -> None:
    assert send(server.port, [("Host", f"{name}:{server.port}")])[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com:{port}",
        "localhost.evil.com:{port}",
        "localhost.:{port}",
        "127.0.0.1.:{port}",
        "[::ffff:127.0.0.1]:{port}",
        "[::]:{port}",
        "0.0.0.0:{port}",
        "127.1:{port}",
        "2130706433:{port}",
        "localhost",
        "localhost:1",
        "localhost:{port}:1",
        "evil.com@localhost:{port}",
        "localhost:{port}, evil.com",
        "localhost:{port}/",
        "",
    ],
)
def test_foreign_hosts_are_refused(server: Running, host: str) -> None:
    status, _, body = send(server.port, [("Host", host.format(port=server.port))])
    assert status == 403
    assert body["error"]["code"] == "host_not_allowed"


def test_missing_or_duplicate_host_is_refused(server: Running) -> None:
    own = ("Host", f"localhost:{server.port}")
    assert send(server.port, [])[0] in (400, 403)
    assert send(server.port, [own, own])[0] in (400, 403)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.com",
        "http://localhost.evil.com:{port}",
        "http://localhost:1",
        "https://localhost:{port}",
        "http://localhost:{port}.evil.com",
        "http://127.0.0.1:{port}",
        "file://",
        "",
    ],
)
def test_foreign_origins_are_refused(server: Running, origin: str) -> None:
    headers = [("Host", f"localhost:{server.port}"), ("Origin", origin.format(port=server.port))]
    for method in ("GET", "POST", "OPTIONS"):
        status, sent, body = send(server.port, headers, method)
        assert status == 403
        assert body["error"]["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in {name.lower() for name in sent}


def test_own_origin_is_accepted(server: Running) -> None:
    own = f"localhost:{server.port}"
    assert send(server.port, [("Host", own), ("Origin", f"http://{own}")])[0] == 200


def test_allowed_origins_and_hosts(serve: Serve) -> None:
    app = "https://app.example"
    with serve(allow_origins=(app,), allow_hosts=("box.lan", "other.lan:80")) as running:
        with httpx.Client(base_url=running.url, headers={"Origin": app}) as client:
            wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-y"}
            preflight = client.options("/v1/chat/completions", headers=wanted)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == app
            assert preflight.headers["access-control-allow-headers"] == "content-type,x-y"
            answer = client.get("/v1/models")
            assert answer.headers["access-control-allow-origin"] == app
            assert answer.headers["vary"] == "Origin"
        for host, status in (("box.lan", 200), ("box.lan:9", 200), ("other.lan:80", 200), ("other.lan:81", 403)):
            assert send(running.port, [("Host", host)])[0] == status


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "a" * 9000]
)
def test_only_json_bodies_are_accepted(server: Running, kind: str) -> None:
    headers = [("Host", f"localhost:{server.port}"), ("Content-Type", kind)]
    status, _, body = send(server.port, headers, "POST", "/v1/chat/completions", json.dumps(ask("hello")).encode())
    assert status == 415
    assert body["error"]["type"] == "invalid_request_error"


def test_json_content_type_with_charset(http: httpx.Client) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    body = json.dumps({**ask("hello"), "max_completion_tokens": 1})
    assert http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_api_keys(serve: Serve) -> None:
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        KEY,
        "Bearer \xff",
        "Bearer " + "x" * 30000,
    ]
    with serve(api_key=KEY) as running:
        own = ("Host", f"localhost:{running.port}")
        for path in ("/v1/models", "/metrics", "/openai/status", "/foundry/list", "/openapi.json", "/nowhere"):
            status, headers, body = send(running.port, [own], path=path)
            assert status == 401
            assert headers["www-authenticate"] == "Bearer"
            assert body["error"]["code"] == "invalid_api_key"
        for sent in wrong:
            assert send(running.port, [own, ("Authorization", sent)])[0] == 401, sent[:20]
        both = [own, ("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {KEY}")]
        assert send(running.port, both)[0] == 401
        assert send(running.port, [own, ("Authorization", f"bearer {KEY}")])[0] == 200
        for path in ("/health", "/"):
            assert send(running.port, [own], path=path)[0] in (200, 404)
        huge = [own, ("Authorization", "Bearer " + "x" * 200_000)]
        with contextlib.suppress(ConnectionError, http.client.HTTPException):  # closed by the server early
            assert send(running.port, huge)[0] in (400, 401, 431)
        assert send(running.port, [own, ("Authorization", f"Bearer {KEY}")])[0] == 200


def test_listening_beyond_loopback_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "box.lan", ""):
        with pytest.raises(InvalidRequest, match="no API key"):
            Settings(host=host)
        Settings(host=host, api_key="k")
    for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"):
        assert is_loopback(host)
        Settings(host=host)


@pytest.mark.parametrize(
    "wrong",
    [{"api_key": ""}, {"api_key": " "}, {"api_key": "schlüssel"}, {"port": 65536}, {"port": -1}]
    + [{"allow_origins": (origin,)} for origin in ("*", "app.example", "https://a/", "http://*.a")],
)
def test_invalid_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Settings(**wrong)
    assert caught.value.remedy


def test_load_by_get_is_refused_cross_site(server: Running) -> None:
    own = ("Host", f"localhost:{server.port}")
    path = f"/openai/load/{MODEL}"
    for site in ("cross-site", "same-site"):
        status, _, body = send(server.port, [own, ("Sec-Fetch-Site", site)], path=path)
        assert (status, body["error"]["code"]) == (403, "forbidden")
    for site in ("none", "same-origin"):
        assert send(server.port, [own, ("Sec-Fetch-Site", site)], path=path)[0] == 200
    assert send(server.port, [own], path=path)[0] == 200


def test_security_headers(http: httpx.Client) -> None:
    headers = http.get("/health").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers
    page = http.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%5capp.py", "/page/C:%5cx", "/page/", "/page/NUL"]
)
def test_page_serves_only_its_files(server: Running, path: str) -> None:
    assert send(server.port, [("Host", f"localhost:{server.port}")], path=path)[0] == 404


def test_logs_contain_no_prompts_or_keys(
    serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG", "gptoss.server")
    secret = "the launch code is 1234"
    sent = {"Authorization": f"Bearer {KEY}"}
    with serve(api_key=KEY) as running, httpx.Client(base_url=running.url, headers=sent, timeout=60) as client:
        client.post("/v1/chat/completions", json={**ask(secret), "max_completion_tokens": 2})
        client.post("/v1/chat/completions", json={**ask(secret), "temperature": 9})
        client.post("/v1/responses", json={"input": secret, "model": "nothing"})
        client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}!"})
    out = "".join(capfd.readouterr()) + caplog.text
    assert "loaded" in out
    assert secret not in out
    assert KEY not in out


def test_request_ids(server: Running) -> None:
    own = ("Host", f"localhost:{server.port}")
    assert send(server.port, [own, ("X-Request-Id", "mine-1")])[1]["x-request-id"] == "mine-1"
    assert send(server.port, [("Host", "evil.com"), ("X-Request-Id", "mine-2")])[1]["x-request-id"] == "mine-2"
    made = {send(server.port, [own, *given])[1]["x-request-id"] for given in ([], [("X-Request-Id", "a b")])}
    assert len(made) == 2
    assert all(name.startswith("req_") for name in made)
