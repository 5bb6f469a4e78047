"""A server's settings: where it listens, who may call it, and its limits. Plain data, validated once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from gptoss_runtime.errors import InvalidRequest

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 5272
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may contain, and what is kept between requests.

    Args:
        body_bytes: size of a request's body.
        body_seconds: time for a request's body to arrive.
        json_depth: nesting of arrays and objects in a body.
        messages: messages or input items in a request.
        tools: tools in a request, those in namespaces included.
        choices: ``n``.
        schema_bytes: size of one JSON schema, serialized.
        schema_depth: nesting of one JSON schema.
        stored_responses: number of responses kept for ``previous_response_id``.
        stored_bytes: total size of the kept responses, their conversations included.
        keep_alive_seconds: silence after which a stream sends a comment, so that clients and proxies keep it open.
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
    keep_alive_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings.

    Args:
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        api_key: what clients send as ``Authorization: Bearer …``; ``None``: no key is required.
        allow_hosts: names, with or without a port, that the Host header may have besides the loopback names.
        allow_origins: web origins ("https://app.example") whose pages may call; others are refused.
        limits: see ``Limits``.
        tell_date: tell the model today's date, as gpt-oss was trained to expect.

    Raises:
        InvalidRequest: an address outside loopback without an API key, or an invalid value.
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
                "the API key is empty or has characters that an HTTP header cannot carry",
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
                    f"{origin!r} is not a web origin",
                    remedy="Write it as browsers do: https://app.example or http://localhost:3000.",
                )
        object.__setattr__(self, "allow_origins", tuple(origin.lower() for origin in self.allow_origins))
        object.__setattr__(self, "allow_hosts", tuple(name.lower() for name in self.allow_hosts))

    @property
    def url(self) -> str:
        """The server's URL, as a browser would write it."""
        return f"http://{bracket_ipv6(self.host)}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracket_ipv6(host: str) -> str:
    """An address as it stands in URLs and Host headers: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
