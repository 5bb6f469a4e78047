"""How a server is set up: where it listens, who may call it, and how much it takes. Plain data, checked once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from gptoss_runtime.errors import InvalidRequest

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 5272
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may bring, and what is kept between requests.

    Args:
        body_bytes: of a request's body.
        body_seconds: for a request's body to arrive.
        json_depth: of arrays and objects in a body.
        messages: messages or input items of a request.
        tools: tools of a request, namespaces unfolded.
        choices: ``n``.
        schema_bytes: of one JSON schema, written out.
        schema_depth: of one JSON schema.
        stored_responses: responses kept for ``previous_response_id``.
        stored_bytes: of all of them, conversations included.
        quiet_seconds: without an event until a stream sends a comment, so that nobody takes it for dead.
    """

    body_bytes: int = 16 * 2**20
    body_seconds: float = 60.0
    json_depth: int = 64
    messages: int = 8192
    tools: int = 512
    choices: int = 8
    schema_bytes: int = 256 * 2**10
    schema_depth: int = 32
    stored_responses: int = 1000
    stored_bytes: int = 64 * 2**20
    quiet_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings.

    Args:
        host: the address to listen on.
        port: 0 takes a free one.
        api_key: what clients send as ``Authorization: Bearer …``; ``None``: none is asked for.
        allow_hosts: names, with or without a port, that a Host header may have beside the loopback names.
        allow_origins: web origins ("https://app.example") whose pages may call; others are refused.
        limits: see ``Limits``.
        tell_date: whether the model is told today's date, as gpt-oss is used to.

    Raises:
        InvalidRequest: an address outside loopback without an API key, or a value that cannot be one.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    api_key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    tell_date: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidRequest(f"port is {self.port}", remedy="Set port to a number from 0 to 65535.")
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.isprintable() and self.api_key.strip()
        ):
            raise InvalidRequest(
                "the API key is empty or has characters that no header carries",
                remedy="Use printable ASCII characters.",
            )
        if self.api_key is None and not is_loopback(self.host):
            raise InvalidRequest(
                f"{self.host} can be reached from other machines, and no API key is set",
                remedy="Set --api-key or GPTOSS_API_KEY, or listen on 127.0.0.1.",
            )
        for origin in self.allow_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2 or "*" in origin:
                raise InvalidRequest(
                    f"{origin!r} is no web origin",
                    remedy="Write it as browsers do: https://app.example or http://localhost:3000.",
                )
        object.__setattr__(self, "allow_origins", tuple(origin.lower() for origin in self.allow_origins))
        object.__setattr__(self, "allow_hosts", tuple(name.lower() for name in self.allow_hosts))

    @property
    def url(self) -> str:
        """Where the server is found, as a browser would write it."""
        return f"http://{bracketed(self.host)}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """An address as URLs and Host headers have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
