from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime import InvalidRequest
from gptoss_runtime.chat.stops import MAX_STOP_LENGTH, MAX_STOPS, StopStrings

letters = st.text("ab🙂\ne\u0301", max_size=40)  # few letters, so that stop strings overlap
stop_lists = st.lists(st.text("ab🙂\ne\u0301", min_size=1, max_size=6), max_size=MAX_STOPS)


def stream(stops: list[str], pieces: Iterable[str]) -> tuple[str, str | None]:
    matcher = StopStrings(stops)
    released = "".join([matcher.feed(piece) for piece in pieces])
    return released + matcher.flush(), matcher.matched


def search(stops: list[str], text: str) -> tuple[str, str | None]:
    """A simple, slow implementation that tests every prefix of the text."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(stop_lists, st.lists(letters, max_size=12))
def test_streamed_text_is_searched_like_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    assert stream(stops, pieces) == search(stops, "".join(pieces))


@given(stop_lists, letters, st.data())
def test_released_text_is_final_and_as_early_as_possible(stops: list[str], text: str, data: st.DataObject) -> None:
    matcher = StopStrings(stops)
    released = ""
    for end, character in enumerate(text, start=1):
        released += matcher.feed(character)
        before, matched = search(stops, text[:end])
        assert before.startswith(released)
        if matched is None:  # only the beginning of a stop string is held back
            held = text[len(released) : end]
            assert not held or any(stop.startswith(held) for stop in stops)
    assert matcher.stopped == (search(stops, text)[1] is not None)


def test_a_stop_string_over_several_tokens() -> None:
    matcher = StopStrings(["</end>", "STOP"])
    assert [matcher.feed(piece) for piece in ("Hello <", "/e", "nde", " </", "end>more")] == [
        "Hello ",
        "",
        "</ende",
        " ",
        "",
    ]
    assert matcher.stopped
    assert matcher.matched == "</end>"
    assert matcher.feed("again") == matcher.flush() == ""


def test_flush_releases_an_incomplete_stop_string() -> None:
    matcher = StopStrings(["\n\nUser:"])
    assert matcher.feed("Hi\n\nUse") == "Hi"
    assert not matcher.stopped
    assert matcher.flush() == "\n\nUse"


def test_the_first_complete_stop_string_wins_then_the_longest() -> None:
    assert stream(["abcd", "bc"], ["abcd"]) == ("a", "bc")
    assert stream(["c", "bc", "abc"], ["ab", "c"]) == ("", "abc")
    assert stream([], ["abc"]) == ("abc", None)


def test_repetitive_stop_strings_take_linear_time() -> None:
    stops = ["a" * (MAX_STOP_LENGTH - at) + "b" for at in range(1, MAX_STOPS + 1)]
    assert stream(stops, ["a" * 3000] * 3) == ("a" * 9000, None)


@pytest.mark.parametrize(
    "stops", ["abc", [""], ["a", None], [b"a"], ["a"] * 17, ["x" * 1025], 5, None, {"a"}, ["a"] * 10_000]
)
def test_bad_stop_strings(stops: object) -> None:
    with pytest.raises(InvalidRequest):
        StopStrings(stops)  # type: ignore[arg-type]
