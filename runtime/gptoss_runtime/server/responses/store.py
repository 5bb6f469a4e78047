"""Kept responses: in memory only, limited in number and size; the least recently used is evicted first.

Knows objects and their sizes; knows nothing of how they are generated.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.requests import Request

from gptoss_runtime.server.errors import BadRequest, NotFound
from gptoss_runtime.server.responses.items import Item
from gptoss_runtime.server.settings import Limits


@dataclass(slots=True)
class StoredResponse:
    """A kept response.

    Args:
        response: the object, as GET returns it.
        items: the request's input.
        earlier: the conversation before that input.
        cancel: cancels it while it is being generated; ``None`` once it is done.
        size: approximate size in bytes.
        created: when it was created, on ``time.monotonic_ns``'s clock.
    """

    response: dict[str, Any]
    items: list[Item]
    earlier: list[Item]
    cancel: Callable[[], None] | None = None
    size: int = 0
    created: int = field(default_factory=time.monotonic_ns)

    @property
    def conversation(self) -> list[Item]:
        """All items of the conversation, this response's output included."""
        return [*self.earlier, *self.items, *self.response["output"]]


class ResponseStore:
    """The kept responses, least recently used first.

    Args:
        limits: the server's limits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._items: dict[str, Item] = {}
        self._size = 0

    @classmethod
    def of(cls, request: Request) -> Self:
        """The store of the app that serves the request."""
        store: Self = request.app.state.response_store
        return store

    def put(self, stored: StoredResponse) -> None:
        """Adds or updates a response, evicting others to make room; one larger than the store is not kept."""
        response_id = stored.response["id"]
        self._remove(response_id)
        stored.size = sum(len(json.dumps(part)) for part in (stored.response, stored.items, stored.earlier))
        if stored.size > self._limits.stored_bytes:
            return
        self._responses[response_id] = stored
        self._size += stored.size
        for item in (*stored.items, *stored.response["output"]):
            self._items[item["id"]] = item
        while len(self._responses) > self._limits.stored_responses or self._size > self._limits.stored_bytes:
            self._remove(next(iter(self._responses)))

    def get(self, response_id: str) -> StoredResponse:
        """Returns a response and marks it as used.

        Raises:
            NotFound: it is unknown, deleted or evicted.
        """
        stored = self._responses.get(response_id)
        if stored is None:
            raise NotFound(
                f"no response {response_id[:80]!r} is kept here",
                code="response_not_found",
                remedy="Responses are kept in the server's memory, and the least recently used are evicted.",
            )
        self._responses.move_to_end(response_id)
        return stored

    def get_conversation(self, previous_response_id: str | None) -> list[Item]:
        """Returns the conversation that a request with this ``previous_response_id`` continues.

        Raises:
            BadRequest: the response is not kept, or not complete.
        """
        if previous_response_id is None:
            return []
        try:
            stored = self.get(previous_response_id)
        except NotFound as error:
            raise BadRequest(
                error.message, param="previous_response_id", code="previous_response_not_found", remedy=error.remedy
            ) from error
        if stored.response["status"] not in ("completed", "incomplete"):
            raise BadRequest(
                f"the response {previous_response_id[:80]!r} is {stored.response['status']}",
                param="previous_response_id",
            )
        return stored.conversation

    def find_item(self, item_id: str) -> Item | None:
        """Finds an item of a kept response, input or output."""
        return self._items.get(item_id)

    def delete(self, response_id: str) -> None:
        """Deletes a response, and cancels it if it is being generated. Raises as ``get``."""
        stored = self.get(response_id)
        if stored.cancel is not None:
            stored.cancel()
        self._remove(response_id)

    def list_newest_first(self) -> Sequence[StoredResponse]:
        """Lists all responses, the newest first."""
        return sorted(self._responses.values(), key=lambda stored: stored.created, reverse=True)

    def __contains__(self, response_id: str) -> bool:
        return response_id in self._responses

    def _remove(self, response_id: str) -> None:
        stored = self._responses.pop(response_id, None)
        if stored is None:
            return
        self._size -= stored.size
        for item in (*stored.items, *stored.response["output"]):
            self._items.pop(item["id"], None)
