"""Real clients, unmodified, in their own processes, against a real server over nano.

They are installed into a separate folder, because they need many packages that nothing else here needs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import packages
from tests.server.running import MODEL, Running

PACKAGES = ("openai-agents==0.24.0", "langchain-openai==1.7.4", "schemathesis==4.32.5")
SCRIPTS = Path(__file__).parent / "clients"
pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def clients() -> Path:
    return packages.install_packages("python-clients", *PACKAGES)


def run(clients: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a client that can reach only this machine, with its telemetry turned off."""
    quiet = {"OPENAI_AGENTS_DISABLE_TRACING": "1", "LANGSMITH_TRACING": "false", "SCHEMATHESIS_REPORT": "false"}
    return packages.run(clients, *command, folder=folder, environment=quiet)


def test_openai_agents(server: Running, clients: Path, tmp_path: Path) -> None:
    done = run(clients, tmp_path, str(SCRIPTS / "agents_sdk.py"), server.url, MODEL)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[1] for line in lines[:-1]] == ["It is 21 degrees and sunny in Paris."] * 4
    assert lines[-1] == ["called", *["Paris"] * 4]


def test_langchain(server: Running, clients: Path, tmp_path: Path) -> None:
    done = run(clients, tmp_path, str(SCRIPTS / "langchain.py"), server.url, MODEL)
    assert done.returncode == 0, done.stderr
    sums = [["invoke", "27 + 45 = 72"], ["stream", "27 + 45 = 72"]]
    once = [*sums, ["tools", "{'city': 'Paris'}"], ["parsed", "Colour"]]
    assert [line.split("\t") for line in done.stdout.splitlines()] == once * 2


def test_openapi_document_matches_the_server(server: Running, clients: Path, tmp_path: Path) -> None:
    """Schemathesis sends requests that the document allows and others that it does not; none may be a 500."""
    options = ["--checks", "not_a_server_error,response_headers_conformance", "--max-examples", "8", "--seed", "1"]
    options += ["--exclude-path-regex", "^/openai/(un)?load", "--phases", "examples,fuzzing", "--no-color"]
    done = run(clients, tmp_path, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
