"""Stop strings in streamed text. Knows characters; knows nothing of tokens, so their borders make no difference."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_runtime.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024


class StopStrings:
    """Gives out text up to the first stop string, and holds back what may become one.

    The first is the one that is complete first, the longest of several that are complete at once. The cost is a few
    steps for each character and stop string (Knuth-Morris-Pratt).

    Args:
        stops: at most 16, each of 1 to 1024 characters.

    Raises:
        InvalidRequest: too many, too long, empty, or not strings.

    ``stopped`` says whether one has come, and ``matched`` which.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = _checked(stops)
        self._failures = [_failures(stop) for stop in self._stops]
        self._lengths = [0] * len(self._stops)  # characters of each stop that the text ends with
        self._held = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; what follows it is dropped."""
        return self.matched is not None

    def feed(self, text: str) -> str:
        """Takes more text; returns what can be shown now."""
        if self.stopped:
            return ""
        for end, character in enumerate(text, start=1):
            complete = [stop for at, stop in enumerate(self._stops) if self._advance(at, character)]
            if complete:
                self.matched = max(complete, key=len)
                before = self._held + text[:end]
                self._held = ""
                return before[: len(before) - len(self.matched)]
        self._held += text
        safe = len(self._held) - max(self._lengths, default=0)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def flush(self) -> str:
        """The text that was held back, when no more comes; empty after a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, at: int, character: str) -> bool:
        """One more character for one stop; whether it is complete."""
        stop, failures, length = self._stops[at], self._failures[at], self._lengths[at]
        while length and stop[length] != character:
            length = failures[length - 1]
        length += stop[length] == character
        self._lengths[at] = length
        return length == len(stop)


def _failures(stop: str) -> list[int]:
    """For each prefix of ``stop``, the length of its longest proper prefix that it also ends with."""
    failures = [0] * len(stop)
    length = 0
    for at in range(1, len(stop)):
        while length and stop[length] != stop[at]:
            length = failures[length - 1]
        length += stop[length] == stop[at]
        failures[at] = length
    return failures


def _checked(stops: object) -> tuple[str, ...]:
    if isinstance(stops, str) or not isinstance(stops, Sequence) or len(stops) > MAX_STOPS:
        raise InvalidRequest("stop is not a list of stop strings", remedy=f"Pass a list of at most {MAX_STOPS}.")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"a stop string is {str(stop)[:40]!r}", remedy=f"Use strings of 1 to {MAX_STOP_LENGTH} characters."
            )
    return tuple(stops)
