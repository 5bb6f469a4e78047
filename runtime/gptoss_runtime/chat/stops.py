"""Stop strings in streamed text. Works on characters, so token boundaries do not matter."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_runtime.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024


class StopStrings:
    """Passes streamed text through up to the first stop string, and holds back text that may be the start of one.

    The first stop string is the one that completes first; if several complete at the same character, the longest. Uses
    the Knuth-Morris-Pratt algorithm: constant time per character and stop string, on average.

    Args:
        stops: at most 16 strings, each of 1 to 1024 characters.

    Raises:
        InvalidRequest: there are too many, or one is empty, too long or not a string.

    ``matched`` is the stop string that was found, if any.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = _check_stops(stops)
        self._failures = [_failure_table(stop) for stop in self._stops]
        self._lengths = [0] * len(self._stops)  # how many characters of each stop string the text ends with
        self._held = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; text after it is dropped."""
        return self.matched is not None

    def feed(self, text: str) -> str:
        """Adds text; returns the text that is certainly not part of a stop string."""
        if self.stopped:
            return ""
        for end, character in enumerate(text, start=1):
            complete = [stop for index, stop in enumerate(self._stops) if self._match(index, character)]
            if complete:
                self.matched = max(complete, key=len)
                before = self._held + text[:end]
                self._held = ""
                return before[: len(before) - len(self.matched)]
        self._held += text
        safe = len(self._held) - max(self._lengths, default=0)
        released, self._held = self._held[:safe], self._held[safe:]
        return released

    def flush(self) -> str:
        """Returns the text held back, at the end of the text; empty after a stop string."""
        held, self._held = self._held, ""
        return held

    def _match(self, index: int, character: str) -> bool:
        """Matches one more character against one stop string; returns whether it is complete."""
        stop, failures, length = self._stops[index], self._failures[index], self._lengths[index]
        while length and stop[length] != character:
            length = failures[length - 1]
        length += stop[length] == character
        self._lengths[index] = length
        return length == len(stop)


def _failure_table(stop: str) -> list[int]:
    """For each prefix of ``stop``, the length of its longest proper prefix that is also its suffix."""
    failures = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[length] != stop[index]:
            length = failures[length - 1]
        length += stop[length] == stop[index]
        failures[index] = length
    return failures


def _check_stops(stops: object) -> tuple[str, ...]:
    if isinstance(stops, str) or not isinstance(stops, Sequence) or len(stops) > MAX_STOPS:
        raise InvalidRequest("stop is not a list of stop strings", remedy=f"Pass a list of at most {MAX_STOPS}.")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"a stop string is {str(stop)[:40]!r}", remedy=f"Use strings of 1 to {MAX_STOP_LENGTH} characters."
            )
    return tuple(stops)
