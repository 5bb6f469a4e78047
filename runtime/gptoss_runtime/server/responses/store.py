"""Responses kept for later: in memory only, within a number and a size; the one unused longest goes first.

Knows objects and their sizes; knows nothing of how they come about.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_runtime.server.errors import NotThere, RequestRefused
from gptoss_runtime.server.responses.items import Item
from gptoss_runtime.server.settings import Limits


@dataclass(slots=True)
class Stored:
    """A response that is kept.

    Args:
        response: the object, as GET gives it.
        items: the input it had.
        before: the conversation that went before.
        cancel: ends it while it is being made; ``None`` once it is done.
        size: bytes, about.
        made: when, for the order of lists.
    """

    response: dict[str, Any]
    items: list[Item]
    before: list[Item]
    cancel: Callable[[], None] | None = None
    size: int = 0
    made: int = field(default_factory=time.monotonic_ns)

    @property
    def conversation(self) -> list[Item]:
        """Everything that was said, up to and with this response."""
        return [*self.before, *self.items, *self.response["output"]]


class ResponseStore:
    """The responses that are kept."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._items: dict[str, Item] = {}
        self._size = 0

    def put(self, stored: Stored) -> None:
        """Keeps a response, or what has become of it; one too large for the store is not kept."""
        response_id = stored.response["id"]
        self._forget(response_id)
        stored.size = sum(len(json.dumps(part)) for part in (stored.response, stored.items, stored.before))
        if stored.size > self._limits.stored_bytes:
            return
        self._kept[response_id] = stored
        self._size += stored.size
        for item in (*stored.items, *stored.response["output"]):
            self._items[item["id"]] = item
        while len(self._kept) > self._limits.stored_responses or self._size > self._limits.stored_bytes:
            self._forget(next(iter(self._kept)))

    def get(self, response_id: str) -> Stored:
        """A response.

        Raises:
            NotThere: it is not kept: unknown, deleted, or pushed out by others.
        """
        stored = self._kept.get(response_id)
        if stored is None:
            raise NotThere(
                f"no response {response_id[:80]!r} is kept here",
                code="response_not_found",
                remedy="Responses live in the server's memory, and the oldest make room for new ones.",
            )
        self._kept.move_to_end(response_id)
        return stored

    def before(self, response_id: str | None) -> list[Item]:
        """The conversation that a request with this ``previous_response_id`` goes on from.

        Raises:
            RequestRefused: it is not kept, or not done yet.
        """
        if response_id is None:
            return []
        try:
            stored = self.get(response_id)
        except NotThere as error:
            raise RequestRefused(
                error.message, param="previous_response_id", code="previous_response_not_found", remedy=error.remedy
            ) from error
        if stored.response["status"] not in ("completed", "incomplete"):
            raise RequestRefused(
                f"the response {response_id[:80]!r} is {stored.response['status']}", param="previous_response_id"
            )
        return stored.conversation

    def item(self, item_id: str) -> Item | None:
        """An item of a response that is kept."""
        return self._items.get(item_id)

    def delete(self, response_id: str) -> None:
        """Forgets a response, and ends it if it is being made. Raises as ``get``."""
        stored = self.get(response_id)
        if stored.cancel is not None:
            stored.cancel()
        self._forget(response_id)

    def all(self) -> Sequence[Stored]:
        """Those that are kept, the newest first."""
        return sorted(self._kept.values(), key=lambda stored: stored.made, reverse=True)

    def __contains__(self, response_id: str) -> bool:
        return response_id in self._kept

    def _forget(self, response_id: str) -> None:
        stored = self._kept.pop(response_id, None)
        if stored is None:
            return
        self._size -= stored.size
        for item in (*stored.items, *stored.response["output"]):
            self._items.pop(item["id"], None)
