"""The page in a real Chromium: with a scripted API for failures, and with the real server over nano."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.browser import chromium
from tests.server.page_server import PAGE, Script, Write, event, page_server, text
from tests.server.running import WEATHER

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "page.png"  # written if GPTOSS_PICTURES is set
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\u202e"
CALL = {"id": "call_1", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def api() -> Iterator[Script]:
    with page_server() as script:
        yield script


class Page:
    """The page as a user operates it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)
        browser.execute_script("sessionStorage.clear()")
        browser.get(url)
        self.wait_until(lambda: self.get_text("#code"))

    def find(self, css: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.browser.find_element(By.CSS_SELECTOR, css)

    def find_all(self, css: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        found: list[Any] = self.browser.find_elements(By.CSS_SELECTOR, css)
        return found

    def get_text(self, css: str) -> str:
        """An element's text, even if it is collapsed."""
        found: str = self.find(css).get_property("textContent")
        return found

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (NoSuchElementException, StaleElementReferenceException, IndexError)
        return WebDriverWait(self.browser, 120, 0.02, ignored).until(lambda _: condition())

    def ask(self, prompt: str) -> None:
        self.find("#prompt").send_keys(prompt + "\n")

    def wait_for_answers(self, count: int = 1) -> list[Any]:
        """Waits until ``count`` answers are complete, and returns them."""
        self.wait_until(lambda: len(self.find_all("article.answer[aria-busy=false]")) >= count)
        return self.find_all("article.answer")

    def set(self, css: str, value: str) -> None:
        """Sets a field as if typed, even if it is collapsed."""
        script = "arguments[0].value = arguments[1]; for (const type of ['input', 'change'])"
        script += " arguments[0].dispatchEvent(new Event(type, {bubbles: true}));"
        self.browser.execute_script(script, self.find(css), value)

    def console_errors(self) -> list[str]:
        """Warnings and errors in the browser's console, except for API requests that failed."""
        logs = self.browser.get_log("browser")
        serious = [entry["message"] for entry in logs if entry["level"] in ("WARNING", "SEVERE")]
        return [message for message in serious if "Failed to load resource" not in message]


@pytest.fixture
def page(browser: Any, api: Script) -> Iterator[Page]:
    page = Page(browser, api.url)
    yield page
    assert page.console_errors() == []
    assert browser.title == "gptoss"


def test_conversation(page: Page, api: Script) -> None:
    api.answers = [text("Paris, of course.", reasoning="Capital of France."), text("```python\nprint(1)\n```\nDone.")]
    assert page.find("#model").get_property("value") == "scripted"
    page.wait_until(lambda: page.find("#device").text == "A Card · directml · 8,192-token context")
    page.ask("What is the capital of France?")
    page.wait_for_answers()
    assert page.get_text("article.answer .body") == "Paris, of course."
    assert page.get_text("article.answer .reasoning") == "Capital of France."
    assert not page.find("article.answer details").get_property("open")
    assert page.get_text(".figures") == "42 tokens · 93.3 tokens/s · first token after 0.12 s · scripted"
    assert page.find("#status").text == "The answer is complete."
    page.ask("Show code")
    page.wait_for_answers(2)
    assert page.get_text("article.answer:last-of-type pre code") == "print(1)"
    first, second = api.asked
    assert first["stream"] is True
    assert first["stream_options"] == {"include_usage": True}
    assert (first["model"], first["reasoning_effort"], first["temperature"]) == ("scripted", "medium", 1)
    assert "max_completion_tokens" not in first
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "Paris, of course."
    assert page.browser.switch_to.active_element == page.find("#prompt")
    page.find("#new").click()
    assert page.find_all("article") == []


def test_settings_appear_in_requests_and_code(page: Page, api: Script) -> None:
    api.answers = [text("ok")]
    page.find("input[value=high]").click()
    page.set("#temperature", "0.3")
    page.set("#max-tokens", "77")
    page.set("#instructions", 'Be brief; don\'t "joke".')
    page.find("#model").send_keys("other")
    page.ask("Line one\ue008\ue006\ue008line two")
    page.wait_for_answers()
    [asked] = api.asked
    assert {name: asked[name] for name in ("model", "reasoning_effort", "temperature", "max_completion_tokens")} == {
        "model": "other",
        "reasoning_effort": "high",
        "temperature": 0.3,
        "max_completion_tokens": 77,
    }
    assert asked["messages"] == [
        {"role": "system", "content": 'Be brief; don\'t "joke".'},
        {"role": "user", "content": "Line one\nline two"},
    ]
    assert "don'\\''t" in page.find("#code").text
    page.find("#tab-curl").send_keys("\ue014")  # arrow right
    shown = page.find("#code").text
    compile(shown, "shown", "exec")
    for words in ('reasoning_effort="high"', "max_completion_tokens=77", f'base_url="{api.url}/v1"', '"other"'):
        assert words in shown
    page.find("#tab-javascript").click()
    assert f'baseURL: "{api.url}/v1"' in page.find("#code").text
    page.find("#copy").click()
    page.wait_until(lambda: page.find("#status").text in ("Copied.", "Selected: copy it with the keyboard."))


def test_tools_are_answered_by_hand(page: Page, api: Script) -> None:
    other = {"id": "call_2", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
    api.answers = [text("", reasoning="Call it.", calls=[CALL, other]), text("21 degrees.")]
    page.find("#settings details summary").click()
    page.find("#example").click()
    page.ask("Weather?")
    page.wait_until(lambda: len(page.find_all(".call textarea")) == 2)
    assert page.get_text(".call code") == '→ get_weather({"city":"Paris"})'
    page.ask("too early")
    assert len(api.asked) == 1
    assert "waits for its tools" in page.find("#status").text
    page.browser.switch_to.active_element.send_keys('{"temperature": 21}\n')
    page.browser.switch_to.active_element.send_keys("rain\n")
    page.wait_for_answers(2)
    assert page.get_text(".result") == '← {"temperature": 21}'
    assert api.asked[0]["tools"][0]["function"]["name"] == "get_weather"
    assert api.asked[1]["messages"] == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [CALL | {"type": "function"}, other | {"type": "function"}],
            "reasoning_content": "Call it.",
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 21}'},
        {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
    ]
    page.set("#tools", "[{")
    page.find("#prompt").clear()
    page.ask("more")
    assert "This is not JSON" in page.find("#tools-problem").text
    assert len(api.asked) == 2


def test_escape_stops_the_answer(page: Page, api: Script) -> None:
    gone = threading.Event()

    def endless(send: Write) -> None:
        try:
            while True:
                send(event({"content": "more "}))
                gone.wait(0.01)
        except OSError:
            gone.set()

    api.answers = [endless, text("Fine.")]
    page.ask("Go on")
    page.wait_until(lambda: "more more" in page.get_text("article.answer .body"))
    assert page.find("#stop").is_displayed()
    assert not page.find("#send").is_displayed()
    page.browser.switch_to.active_element.send_keys("\ue00c")
    page.wait_for_answers()
    assert gone.wait(20), "the server did not see the disconnect"
    assert page.get_text(".note") == "Stopped."
    page.ask("And now?")
    page.wait_for_answers(2)
    assert [message["role"] for message in api.asked[1]["messages"]] == ["user", "assistant", "user"]


def test_hostile_text_is_shown_as_text(page: Page, api: Script) -> None:
    call = {"id": HOSTILE, "function": {"name": HOSTILE, "arguments": HOSTILE}}
    api.answers = [text(f"{HOSTILE}\n```{HOSTILE}\n{HOSTILE}\n```", reasoning=HOSTILE, calls=[call])]
    api.answers.append((400, {"error": {"message": HOSTILE, "code": HOSTILE}}))
    page.set("#prompt", HOSTILE)
    page.ask("")
    page.wait_for_answers()
    assert HOSTILE in page.get_text("article.answer .body")
    page.browser.switch_to.active_element.send_keys("x\n")
    page.wait_until(lambda: HOSTILE in page.get_text("article.error"))
    assert page.find_all("#log img, #log script") == []
    assert {path.split("?")[0] for path in api.paths} <= {"/", "/v1/models", "/openai/status"} | {
        f"/page/{path.name}" for path in PAGE.iterdir()
    }


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (
            400,
            {"error": {"message": "temperature is 9", "code": "invalid_value", "param": "temperature"}},
            "temperature is 9",
        ),
        (503, {"error": {"message": "every slot is taken", "type": "overloaded"}}, "every slot is taken"),
        (422, {"error": "no"}, "no"),
        (500, {}, "The server answered with status 500."),
    ],
)
def test_api_errors_are_shown(status: int, body: dict[str, Any], shown: str, page: Page, api: Script) -> None:
    api.answers = [(status, body), text("Better.")]
    page.ask("Hello")
    assert page.wait_until(lambda: page.find("article.error p").text) == shown
    assert page.find("article.error").get_attribute("role") == "alert"
    assert str(status) in page.find("article.error .quiet").text
    assert page.find("#prompt").get_property("value") == "Hello"  # the typed text is kept
    page.ask("")
    page.wait_for_answers()
    assert api.asked[1]["messages"] == [{"role": "user", "content": "Hello"}]


def test_interrupted_streams(page: Page, api: Script) -> None:
    def cut(send: Write) -> None:
        send(event({"content": "Half an ans"}))

    def failing(send: Write) -> None:
        send(event({"content": "Half"}) + b'data: {"error": {"message": "the engine died", "code": "engine_died"}}\n\n')

    def odd_bytes(send: Write) -> None:
        whole = b": still working\r\n\r\n" + event({"content": "Grüße 🌍"}) + event({}, "stop") + b"data: [DONE]\n\n"
        for byte in whole.replace(b"\n", b"\r\n"):
            send(bytes([byte]))

    api.answers = [cut, failing, odd_bytes]
    page.ask("One")
    page.wait_until(lambda: page.get_text("article.error p") == "The connection ended before the answer was complete.")
    assert page.get_text("article.answer .note") == "The answer was interrupted."
    page.find("#new").click()
    page.find("#prompt").clear()
    page.ask("Two")
    page.wait_until(lambda: page.get_text("article.error p") == "the engine died")
    page.find("#new").click()
    page.find("#prompt").clear()
    page.ask("Three")
    page.wait_for_answers()
    assert page.get_text("article.answer .body") == "Grüße 🌍"


def test_api_key_in_the_page(browser: Any, api: Script) -> None:
    api.key = "sesame"
    page = Page(browser, api.url)
    page.wait_until(lambda: "API key" in page.find("#status").text)
    assert page.find("#key-part").get_property("open")
    api.answers = [text("Open.")]
    page.find("#key").send_keys("sesame\t")
    page.wait_until(lambda: page.find("#model").get_property("value") == "scripted")
    page.ask("Hello")
    page.wait_for_answers()
    assert "sesame" not in page.find("#code").text
    assert browser.execute_script("return [localStorage.length, sessionStorage.length]") == [0, 1]
    browser.get(api.url)
    assert page.find("#key").get_property("value") == "sesame"


def test_page_on_the_real_server(browser: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Page(browser, server.url)
    page.set("#temperature", "0")
    page.set("#max-tokens", "200")
    page.ask("What is 27 + 45?")
    page.wait_for_answers()
    assert page.get_text("article.answer .body") == "27 + 45 = 72"
    assert "7 + 5 = 12" in page.get_text("article.answer .reasoning")
    assert re.fullmatch(
        r"\d+ tokens · [\d.]+ tokens/s · first token after [\d.]+ s · gptoss-nano", page.get_text(".figures")
    )
    page.wait_until(lambda: re.fullmatch(r"cpu · [\d,]+-token context", page.find("#device").text))
    page.find("#new").click()
    page.set("#tools", json.dumps([{"type": "function", "function": WEATHER}]))
    page.ask("What's the weather in Paris?")
    page.wait_until(lambda: page.get_text(".call code") == '→ get_weather({"city":"Paris"})')
    page.browser.switch_to.active_element.send_keys('{"temperature":21,"condition":"sunny"}\n')
    page.wait_for_answers(2)
    assert page.get_text("article.answer:last-of-type .body") == "It is 21 degrees and sunny in Paris."
    browser.execute_script("document.querySelector('article details').open = true; getSelection().empty()")
    page.find("#tab-python").click()
    picture = PICTURE if os.environ.get("GPTOSS_PICTURES") else tmp_path / "page.png"
    assert browser.save_screenshot(str(picture))
    assert 10_000 < picture.stat().st_size < 300_000
    page.find("#new").click()
    page.set("#tools", "")
    page.set("#prompt", "What is 27 + 45?")
    exec(compile(page.find("#code").text, "shown", "exec"), {})
    assert capsys.readouterr().out == "27 + 45 = 72\n"
    assert page.console_errors() == []


def test_files_refer_to_no_other_server() -> None:
    for path in PAGE.iterdir():
        source = path.read_text(encoding="utf-8")
        assert path.stat().st_size < 20_000, path.name
        addresses = set(re.findall(r"https?://[\w.]+", source)) - {"http://www.w3.org"}
        assert addresses == set(), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source)
        if path.suffix == ".html":
            assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", source)


def test_every_field_has_an_accessible_name(page: Page) -> None:
    script = """
      return [...document.querySelectorAll("input, textarea, select, button")]
        .filter((one) => !(one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim()))
        .map((one) => one.outerHTML);
    """
    assert page.browser.execute_script(script) == []


@pytest.mark.integration
@pytest.mark.parametrize("size", ["1280,860", "390,800"])
def test_dark_mode_and_narrow_window(size: str, api: Script) -> None:
    api.answers = [text("A long word: " + "x" * 300)]
    with chromium(dark=True, size=size) as browser:
        page = Page(browser, api.url)
        page.ask("Hello")
        page.wait_for_answers()
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
        assert _contrast(browser, "article.answer .body") > 7
        assert _contrast(browser, ".figures") > 4.5
        assert page.find("#prompt").is_displayed()


def _contrast(browser: Any, css: str) -> float:
    """WCAG's contrast ratio between an element's text and the page's background."""
    script = "const [a, b] = [document.querySelector(arguments[0]), document.body];"
    script += "return [getComputedStyle(a).color, getComputedStyle(b).backgroundColor]"
    lights = []
    for colour in browser.execute_script(script, css):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
