from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime import InvalidRequest
from gptoss_runtime.chat.stops import MAX_STOP_LENGTH, MAX_STOPS, StopStrings

letters = st.text("ab🙂\ne\u0301", max_size=40)  # few letters, so that stops overlap
stop_lists = st.lists(st.text("ab🙂\ne\u0301", min_size=1, max_size=6), max_size=MAX_STOPS)


def streamed(stops: list[str], pieces: Iterable[str]) -> tuple[str, str | None]:
    watcher = StopStrings(stops)
    shown = "".join([watcher.feed(piece) for piece in pieces])
    return shown + watcher.flush(), watcher.matched


def searched(stops: list[str], text: str) -> tuple[str, str | None]:
    """The plain way: the whole text, every end of it."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(stop_lists, st.lists(letters, max_size=12))
def test_streamed_text_is_searched_like_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    assert streamed(stops, pieces) == searched(stops, "".join(pieces))


@given(stop_lists, letters, st.data())
def test_released_text_is_final_and_as_early_as_possible(stops: list[str], text: str, data: st.DataObject) -> None:
    watcher = StopStrings(stops)
    shown = ""
    for end, character in enumerate(text, start=1):
        shown += watcher.feed(character)
        before, matched = searched(stops, text[:end])
        assert before.startswith(shown)
        if matched is None:  # held back is only what a stop string begins with
            held = text[len(shown) : end]
            assert not held or any(stop.startswith(held) for stop in stops)
    assert watcher.stopped == (searched(stops, text)[1] is not None)


def test_a_stop_string_over_several_tokens() -> None:
    watcher = StopStrings(["</end>", "STOP"])
    assert [watcher.feed(piece) for piece in ("Hello <", "/e", "nde", " </", "end>more")] == [
        "Hello ",
        "",
        "</ende",
        " ",
        "",
    ]
    assert watcher.stopped
    assert watcher.matched == "</end>"
    assert watcher.feed("again") == watcher.flush() == ""


def test_flush_releases_an_incomplete_stop_string() -> None:
    watcher = StopStrings(["\n\nUser:"])
    assert watcher.feed("Hi\n\nUse") == "Hi"
    assert not watcher.stopped
    assert watcher.flush() == "\n\nUse"


def test_the_first_complete_stop_string_wins_then_the_longest() -> None:
    assert streamed(["abcd", "bc"], ["abcd"]) == ("a", "bc")
    assert streamed(["c", "bc", "abc"], ["ab", "c"]) == ("", "abc")
    assert streamed([], ["abc"]) == ("abc", None)


def test_repetitive_stop_strings_take_linear_time() -> None:
    stops = ["a" * (MAX_STOP_LENGTH - at) + "b" for at in range(1, MAX_STOPS + 1)]
    assert streamed(stops, ["a" * 3000] * 3) == ("a" * 9000, None)


@pytest.mark.parametrize(
    "stops", ["abc", [""], ["a", None], [b"a"], ["a"] * 17, ["x" * 1025], 5, None, {"a"}, ["a"] * 10_000]
)
def test_bad_stop_strings(stops: object) -> None:
    with pytest.raises(InvalidRequest):
        StopStrings(stops)  # type: ignore[arg-type]
