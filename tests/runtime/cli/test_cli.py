from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gptoss_runtime import (
    ContentDelta,
    Finish,
    MessageEnd,
    ReasoningDelta,
    ToolCall,
    ToolResult,
)
from gptoss_runtime.cli.main import app
from gptoss_runtime.cli.render import print_events
from gptoss_runtime.errors import ModelNotFound


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_runtime.artifact.vocabulary.platformdirs.user_cache_dir", lambda *_, **__: str(cache))


def run(*arguments: object, text: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def extensions(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    entries = [metadata.EntryPoint(name, target, "gptoss.commands") for name, target in targets.items()]
    monkeypatch.setattr("gptoss_runtime.cli.main.metadata.entry_points", lambda group: entries)


def test_help_and_version() -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    assert all(name in shown.output for name in ("bench", "chat", "generate"))
    assert metadata.version("gptoss-windows") in run("--version").output
    assert run("nonsense").exit_code == 2
    for command in ("generate", "chat", "bench"):
        assert run(command, "--help").exit_code == 0


def test_a_broken_extension_breaks_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    extensions(monkeypatch, broken="no_such_module:run", echo="typer:echo")
    assert run("--help").exit_code == 0
    result = run("broken", "--any", "thing")
    assert result.exit_code == 6
    assert "gptoss-windows[convert]" in result.output


def test_generate_ids(nano_artifact: Path) -> None:
    options = ("--ids", "1,2,3", "--max-new-tokens", 4, "--temperature", 0)
    result = run("generate", nano_artifact, *options, "--json")
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["prompt_ids"] == [1, 2, 3]
    assert len(report["ids"]) == report["usage"]["new_tokens"] <= 4
    plain = run("generate", nano_artifact, *options)
    assert plain.output.strip() == ",".join(map(str, report["ids"]))


def test_generate_text(nano_artifact: Path) -> None:
    options = ("--prompt", "hello <|end|>", "--max-new-tokens", 6, "--seed", 1)
    for extra in ((), ("--raw",)):
        report = json.loads(run("generate", nano_artifact, *options, *extra, "--json").output)
        assert report["finish_reason"] in ("stop", "length")
        assert len(report["ids"]) == report["usage"]["new_tokens"]
        plain = run("generate", nano_artifact, *options, *extra)
        assert plain.exit_code == 0
        assert "".join(report["text"].split()) in "".join(plain.output.split())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("generate", "{}/missing", "-p", "x"), 4, "does not exist"),
        (("generate", "{}"), 2, "exactly one prompt"),
        (("generate", "{}", "--ids", "1,x"), 2, "Write them as 1,2,3"),
        (("generate", "{}", "--ids", "999999"), 2, "vocabulary"),
        (("generate", "{}", "-p", "x", "--temperature", "nan"), 2, "temperature"),
        (("generate", "{}", "-p", "x", "--effort", "huge"), 2, "effort"),
        (("generate", "{}", "-p", "x", "--provider", "nonsense"), 6, "nonsense"),
        (("bench", "{}", "--repeat", "0"), 2, "repeat"),
    ],
)
def test_error_messages_and_exit_codes(nano_artifact: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    result = run(*(argument.format(nano_artifact) for argument in arguments))
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [(("nothing",), "ModelNotFound"), (("--host", "0.0.0.0"), "InvalidRequest"), (("--ttl", "nan"), "InvalidRequest")],
)
def test_serve_reports_an_error_as_json(arguments: tuple[str, ...], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the program that started it; a user reads the same on stderr."""
    monkeypatch.delenv("GPTOSS_API_KEY", raising=False)
    result = CliRunner().invoke(app, ["serve", *arguments, "--json"])
    reported = json.loads(result.stdout)["error"]
    assert (reported["type"], reported["exit_code"], result.exit_code) == (kind, 2, 2)
    assert result.stderr == f"error: {reported['message']}\n{reported['remedy']}\n"


def test_chat_with_a_pipe(nano_artifact: Path) -> None:
    text = "hello\n\n/effort low\n/effort huge\n/help\n/what\n/reset\nhello\n/exit\nnever\n"
    result = run("chat", nano_artifact, "--max-new-tokens", 3, "--seed", 1, text=text)
    assert result.exit_code == 0
    for words in ("Effort is low.", "unknown effort", "/reset", "Unknown command /what", "Started a new conversation."):
        assert words in result.output


def test_a_model_by_name(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_ARTIFACTS", str(nano_artifact.parents[1]))
    asked = ("--prompt", "What is 27 + 45?", "--temperature", 0)
    by_folder = run("generate", nano_artifact, *asked)
    assert by_folder.exit_code == 0
    assert run("generate", "gptoss-nano", *asked).output == by_folder.output
    unknown = run("chat", "gptoss-micro", text="hello\n")
    assert unknown.exit_code == ModelNotFound.exit_code
    assert "Available models" in unknown.stderr


def test_chat_continues_after_a_full_context(nano_artifact: Path) -> None:
    result = run("chat", nano_artifact, "--context-length", 80, text="word " * 200 + "\nhello\n")
    assert result.exit_code == 0
    assert "/reset starts a new conversation" in result.output


def test_bench(nano_artifact: Path) -> None:
    options = ("--prompt-tokens", 8, "--new-tokens", 3, "--repeat", 2, "--threads", 1)
    report = json.loads(run("bench", nano_artifact, *options, "--json").output)
    assert (report["prompt_tokens"], report["new_tokens"], report["repeat"]) == (8, 3, 2)
    assert report["peak_memory"] > 2**20
    assert min(report["prefill_rate"], report["decode_rate"], report["load_seconds"]) > 0
    assert "decode (3 tokens)" in run("bench", nano_artifact, *options).output


def test_an_interrupt_exits_with_130(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptoss_runtime.bench.bench", interrupted)
    assert run("bench", nano_artifact).exit_code == 130


def test_events_are_printed() -> None:
    out = StringIO()
    events = [
        ReasoningDelta("Let me "),
        ReasoningDelta("add."),
        MessageEnd("analysis"),
        ToolCall("add", '{"a": 1}'),
        ToolResult("add", "3"),
        ContentDelta("It is [bold]3\x1b[31m."),
        MessageEnd("final"),
        Finish("stop", malformed=True),
    ]
    finish = print_events(iter(events), Console(file=out, width=40))
    assert finish.malformed
    assert out.getvalue().splitlines() == [
        "Let me add.",
        '→ add({"a": 1})',
        "← add: 3",
        "It is [bold]3�[31m.",
        "[the model's output is malformed; some text may be missing]",
    ]
    out = StringIO()
    print_events(iter([*events[:2], Finish("length")]), Console(file=out), show_reasoning=False)
    assert out.getvalue() == "[stopped: token limit reached]\n"
    out = StringIO()
    print_events(iter([ContentDelta("It"), Finish("error")]), Console(file=out))
    assert out.getvalue() == "It\n[incomplete: the engine failed]\n"


def test_a_real_process_with_a_legacy_code_page(nano_artifact: Path) -> None:
    def gptoss(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        script = "from gptoss_runtime.cli.main import main; main()"
        command = [sys.executable, "-W", "error", "-c", script, *arguments]
        environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
        return subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)

    options = ("--prompt", "é🙂", "--raw", "--max-new-tokens", "8", "--seed", "3")
    done = gptoss("generate", str(nano_artifact), *options)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("utf-8")
    failed = gptoss("generate", str(nano_artifact / "missing"), "--prompt", "x")
    assert failed.returncode == 4
    assert failed.stderr.decode("utf-8").startswith("error: ")


def test_help_imports_nothing_heavy() -> None:
    """``--help`` imports every module of commands for its line of help; none may import a library that takes long."""
    code = (
        "import sys; from typer.testing import CliRunner; from gptoss_runtime.cli.main import app\n"
        "shown = CliRunner().invoke(app, ['--help'])\n"
        "assert shown.exit_code == 0 and 'not installed' not in shown.output, shown.output\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert {f"gptoss_convert.cli.{name}" for name in ("convert", "demo", "inspect", "nano", "parity")} <= imported
    heavy = {"onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai", "olive", "torch", "transformers", "tokenizers"}
    heavy |= {"fastapi", "uvicorn", "pydantic", "huggingface_hub", "openai_harmony", "llguidance", "ml_dtypes"}
    assert heavy & imported == set()


def test_importing_the_package_imports_no_model() -> None:
    script = (
        "import sys, gptoss_runtime, gptoss_runtime.cli.main; "
        "print([m for m in ('onnxruntime_genai', 'openai_harmony', 'torch', 'gptoss_convert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
