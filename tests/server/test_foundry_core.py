"""Foundry Local's core on this project's artifacts, in its own process with the onnxruntime that it is pinned to."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import onnxruntime
import pytest

from gptoss_convert.workflow import convert
from tests.packages import install_packages, run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "foundry-local.md").read_text(encoding="utf-8")
CLIENT = str(Path(__file__).parent / "clients" / "foundry_core.py")
ADDS = "Add 27 and 45. 7 + 5 = 12, 20 + 40 = 60, 60 + 12 = 72."
pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def core() -> Path:
    return install_packages("foundry-local", "foundry-local-sdk==2.2.1")


@pytest.fixture(scope="session")
def int4_artifact(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "gptoss-nano" / "cpu-int4"
    convert(nano_checkpoint, out, target="cpu-int4")
    return out


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A home folder for its registrations and logs, and no way to reach Microsoft's servers, to which it reports."""
    names = ("HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return dict.fromkeys(names, str(tmp_path)) | nowhere


def test_core_answers_from_an_artifact(core: Path, int4_artifact: Path, home: dict[str, str], tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in int4_artifact.iterdir()}
    done = run(core, CLIENT, str(int4_artifact), folder=tmp_path, environment=home)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        ["context", "4096"],
        ["REASONING This is a greeting.", "DEFAULT Hello! How can I help you today?", "STOP"],
        ["REASONING Recall the capital of France.", "DEFAULT The capital of France is Paris.", "STOP"],
        [f"REASONING {ADDS}", "DEFAULT 27 + 45 = 72", "STOP"],
        ["streamed", ADDS, "27 + 45 = 72"],
    ]
    assert {path.name: path.stat().st_mtime_ns for path in int4_artifact.iterdir()} == before


def test_core_is_too_old_for_mxfp4(core: Path, nano_artifact: Path, home: dict[str, str], tmp_path: Path) -> None:
    """The reason for cpu-int4; once this fails, docs/foundry-local.md can recommend ``cpu``."""
    done = run(core, CLIENT, str(nano_artifact), folder=tmp_path, environment=home)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused" in done.stdout
    assert "Could not find an implementation for QMoE" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the SDK loads onnxruntime by another way")
def test_core_with_a_newer_onnxruntime(core: Path, nano_artifact: Path, home: dict[str, str], tmp_path: Path) -> None:
    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    done = run(core, CLIENT, str(nano_artifact), folder=tmp_path, environment={**home, "ORT_LIB_PATH": str(library)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].split("\t") == ["streamed", ADDS, "27 + 45 = 72"]


def test_example_in_the_docs(core: Path, int4_artifact: Path, home: dict[str, str], tmp_path: Path) -> None:
    [(example, shown)] = re.findall(r"```python\n(.*?)```\n+```\n(.*?)```", PAGE, re.DOTALL)
    example = example.replace("artifacts/gptoss-nano/cpu-int4", int4_artifact.as_posix())
    for _ in range(2):  # the second finds what the first registered
        done = run(core, "-c", example, folder=tmp_path, environment=home)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout == shown
