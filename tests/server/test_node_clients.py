"""JavaScript clients, unmodified, in Node, against a real server over nano."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.server.node import CLIENTS, Node, outside
from tests.server.running import MODEL, Running

pytestmark = pytest.mark.integration
GUIDE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```javascript\n(.*?)```", GUIDE, re.DOTALL)
SUM = "27 + 45 = 72"
SUNNY = "It is 21 degrees and sunny in Paris."


def run(node: Node, server: Running, script: str, folder: Path) -> tuple[dict[tuple[str, str], Any], str]:
    """Runs a script; returns its results by API and action, and its warnings. It may contact only the server."""
    with outside() as world:
        done = node.run(CLIENTS / script, server.url, MODEL, folder=folder, environment=world.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert world.asked == []
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {(api, action): value for api, action, value in lines}, done.stderr


def is_tom(person: dict[str, Any]) -> bool:
    """Checks the schema's keys, and the values that nano can copy; it mixes up names."""
    return set(person) == {"name", "age", "city"} and (person["age"], person["city"]) == (34, "Rome")


@pytest.fixture(scope="module")
def ai_sdk(node: Node, server: Running, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], str]:
    return run(node, server, "ai_sdk.mjs", tmp_path_factory.mktemp("ai-sdk"))


@pytest.mark.parametrize("api", ["responses", "stateless", "chat"])
def test_ai_sdk(ai_sdk: tuple[dict[Any, Any], str], api: str) -> None:
    results = {action: value for (name, action), value in ai_sdk[0].items() if name == api}
    assert results.pop("text") == [SUM, "stop", True]
    assert ("60 + 12 = 72" in results.pop("reasoning")) is (api == "stateless")  # the script asks for a summary there
    assert results.pop("stream") == [SUM, True, "stop"]
    assert results.pop("steps") == [SUNNY, ["tool-calls", "stop"]]
    assert results.pop("streamed steps") == [SUNNY, ["tool-call", "tool-result"]]
    assert results.pop("required") == [["get_weather", {"city": "Paris"}]]
    assert results.pop("asked") == ["Paris"] * 3
    assert is_tom(results.pop("object"))
    assert is_tom(results.pop("output"))
    several, last = results.pop("partial outputs")
    assert several
    assert is_tom(last)
    assert results.pop("cut") == "length"
    assert results.pop("aborted") is True
    assert results.pop("unknown model") == [True, 404]
    assert results == {}


def test_ai_sdk_prints_no_warnings(ai_sdk: tuple[dict[Any, Any], str]) -> None:
    """It would warn of fields it drops from a request, and of reasoning that it cannot send back."""
    assert "AI SDK Warning (" not in ai_sdk[1]


def test_openai_client(node: Node, server: Running, tmp_path: Path) -> None:
    results, warnings = run(node, server, "openai_sdk.mjs", tmp_path)
    assert MODEL in results.pop(("models", "list"))
    assert results.pop(("models", "unknown")) == [True, "model_not_found"]
    assert results.pop(("chat", "stream")) == [SUM, True]
    assert results.pop(("chat", "tools")) == SUNNY
    assert results.pop(("chat", "streamed tools")) == SUNNY
    assert results.pop(("chat", "asked")) == ["Paris"] * 2
    assert is_tom(results.pop(("chat", "parsed")))
    assert results.pop(("responses", "call")) == ["get_weather", {"city": "Paris"}, True]
    assert results.pop(("responses", "results")) == [SUNNY] * 2
    assert is_tom(results.pop(("responses", "parsed")))
    assert results == {}
    assert warnings == ""


@pytest.mark.parametrize(
    ("example", "output"), [*zip(EXAMPLES, ["The capital of France is Paris.", SUNNY], strict=True)]
)
def test_examples_in_the_guide(node: Node, server: Running, tmp_path: Path, example: str, output: str) -> None:
    script = tmp_path / "example.mjs"
    script.write_text(example.replace("http://127.0.0.1:5272", server.url), encoding="utf-8")
    done = node.run(script, folder=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, output, "")
