"""OpenAI's Codex CLI, unmodified, completes a task with this server, and contacts no other one.

nano cannot program, so the server replays scripted answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.node import Node, Outside, outside
from tests.server.recorded import Recording, call, final, serve_recorded, thought
from tests.server.running import MODEL

pytestmark = pytest.mark.integration
GUIDE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text(encoding="utf-8")
CONFIG = GUIDE.partition("```toml\n")[2].partition("```")[0]
WRITE = "Set-Content made.txt 'made here'" if sys.platform == "win32" else "echo 'made here' > made.txt"
ANSWERS = (
    thought("A file is wanted.") + call("exec_command", json.dumps({"cmd": WRITE})),
    thought("The command has worked.") + final("made.txt is written."),
)


@pytest.fixture
def world() -> Iterator[Outside]:
    with outside() as world:
        yield world


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Codex's home folder."""
    folder = tmp_path / "codex"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def configure(home: Path, url: str, model: str = MODEL) -> None:
    """Writes the config.toml of docs/sdk.md, for this server and model."""
    config = CONFIG.replace("http://127.0.0.1:5272", url).replace("gpt-oss-20b", model)
    (home / "config.toml").write_text(config, encoding="utf-8")


def codex(
    node: Node, world: Outside, home: Path, project: Path, *arguments: str, url: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs ``codex exec`` without a sandbox: containers cannot provide one, and the commands are this test's own."""
    environment = {"CODEX_HOME": str(home), "HOME": str(home), "CODEX_OSS_BASE_URL": url, **world.environment}
    program = node.folder / "node_modules" / "@openai" / "codex" / "bin" / "codex.js"
    options = ["--skip-git-repo-check", "--color", "never", "-s", "danger-full-access"]
    return node.run(program, "exec", *options, *arguments, folder=project, environment=environment)


def check(done: subprocess.CompletedProcess[str], project: Path, recording: Recording) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "made.txt is written."
    assert (project / "made.txt").read_text(encoding="ascii").strip() == "made here"
    asked, reported = recording.prompts[-2:]
    assert "Write made.txt, please." in asked
    assert "type exec_command = " in asked
    assert reported.startswith(asked.removesuffix("<|start|>assistant"))
    after = reported[len(asked) :]
    assert "<|channel|>analysis<|message|>A file is wanted.<|end|>" in after  # reasoning stays with a call
    assert "<|start|>functions.exec_command to=assistant" in after
    assert "exited with code 0" in after


def test_codex_with_the_guides_configuration(
    node: Node, world: Outside, home: Path, project: Path, nano_artifact: Path, vocabulary: Path
) -> None:
    """The configuration turns off everything that contacts other servers."""
    with serve_recorded(nano_artifact, vocabulary, ANSWERS) as recording:
        configure(home, recording.url)
        done = codex(node, world, home, project, "Write made.txt, please.")
    check(done, project, recording)
    assert len(recording.prompts) == 2
    assert len(recording.engine.prompts[1]) < 5000  # as the guide says
    assert world.asked == []


def test_codex_as_an_lm_studio_client(
    node: Node, world: Outside, home: Path, project: Path, nano_artifact: Path, vocabulary: Path
) -> None:
    """``--oss`` without configuration: Codex lists the models and warms this one up first."""
    arguments = ("--oss", "--local-provider", "lmstudio", "-m", MODEL, "Write made.txt, please.")
    with serve_recorded(nano_artifact, vocabulary, (final("Hi"), *ANSWERS)) as recording:
        done = codex(node, world, home, project, *arguments, url=f"{recording.url}/v1")
    check(done, project, recording)
    assert len(recording.prompts) == 3
    assert len(recording.engine.prompts[2]) > 7000
    assert "type multi_agent_v1__spawn_agent = " in recording.prompts[1]  # a namespace's tool


def test_codex_output_schema(
    node: Node, world: Outside, home: Path, project: Path, nano_artifact: Path, vocabulary: Path
) -> None:
    """``--output-schema`` is enforced by a grammar: the script goes on after the schema is satisfied, to no effect."""
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    schema_file = home / "schema.json"
    schema_file.write_text(json.dumps(schema | {"additionalProperties": False}), encoding="utf-8")
    with serve_recorded(nano_artifact, vocabulary, [final('{"sum":72}')]) as recording:
        configure(home, recording.url)
        done = codex(node, world, home, project, "--output-schema", str(schema_file), "Add 27 and 45.")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"sum": 72}
    assert "# Response Formats" in recording.prompts[0]


def test_codex_with_an_unknown_model(
    node: Node, world: Outside, home: Path, project: Path, nano_artifact: Path, vocabulary: Path
) -> None:
    with serve_recorded(nano_artifact, vocabulary, []) as recording:
        configure(home, recording.url, "nobody")
        done = codex(node, world, home, project, "Hello.")
    assert done.returncode == 1
    assert "there is no model 'nobody'. GET /v1/models lists those there are." in done.stderr
