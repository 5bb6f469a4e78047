"""Which builds work together, checked with made-up lists of installed packages."""

from __future__ import annotations

from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime.errors import BackendUnavailable
from gptoss_runtime.machine import hardware, installed

DIRECTML = {"onnxruntime-directml": "1.24.4", "onnxruntime-genai-directml": "0.13.1"}
CPU = {"onnxruntime": "1.32.0", "onnxruntime-genai": "0.18.0"}
INSTALL = 'pip install "gptoss-windows[directml]"'


@pytest.fixture(autouse=True)
def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "WINDOWS", True)


def require_directml_error(found: dict[str, str]) -> tuple[str, list[str]]:
    with pytest.raises(BackendUnavailable) as raised:
        installed.require_directml(found)
    return raised.value.message, (raised.value.remedy or "").splitlines()


def test_find_builds_returns_installed_versions() -> None:
    found = installed.find_builds()
    for name, version in found.items():
        assert version == metadata.version(name)
    assert "numpy" not in found


def test_matching_builds_are_accepted() -> None:
    installed.require_directml(DIRECTML)
    installed.require_builds("cpu", DIRECTML)
    installed.require_builds("cpu", CPU)


def test_missing_build() -> None:
    message, remedy = require_directml_error({})
    assert message == "no build of onnxruntime is installed"
    assert remedy == [INSTALL]
    message, remedy = require_directml_error({"onnxruntime-directml": "1.24.4"})
    assert message == "no build of onnxruntime-genai is installed"


def test_conflicting_builds() -> None:
    """The remedy removes both, because the wrong build has overwritten files of the right one."""
    message, remedy = require_directml_error(DIRECTML | {"onnxruntime": "1.32.0"})
    assert message.startswith("onnxruntime and onnxruntime-directml are installed side by side")
    assert remedy[:2] == ["pip uninstall -y onnxruntime onnxruntime-directml", INSTALL]
    _, remedy = require_directml_error(DIRECTML | CPU)
    names = "onnxruntime onnxruntime-directml onnxruntime-genai onnxruntime-genai-directml"
    assert remedy[0] == f"pip uninstall -y {names}"
    assert installed.find_conflicts(DIRECTML | CPU) == [names.split()[:2], names.split()[2:]]
    with pytest.raises(BackendUnavailable, match="side by side") as raised:
        installed.require_builds("cpu", CPU | {"onnxruntime-gpu": "1.31.1"})
    assert 'pip install "gptoss-windows[cpu]"' in (raised.value.remedy or "")


def test_other_builds_instead_of_directml() -> None:
    message, remedy = require_directml_error(CPU)
    assert message == "onnxruntime and onnxruntime-genai are installed instead of the build for DirectML"
    assert remedy[:2] == ["pip uninstall -y onnxruntime onnxruntime-genai", INSTALL]
    message, remedy = require_directml_error({"onnxruntime-directml": "1.24.4", "onnxruntime-genai-cuda": "0.18.0"})
    assert message == "onnxruntime-genai-cuda is installed instead of the build for DirectML"
    assert remedy[0] == "pip uninstall -y onnxruntime-genai-cuda"


def test_remedy_commands_work_in_any_shell() -> None:
    for found in (DIRECTML | CPU, CPU, {}):
        assert not any(sign in line for line in require_directml_error(found)[1] for sign in ("&&", "'", "|", "$"))


def test_directml_on_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "WINDOWS", False)
    message, remedy = require_directml_error(DIRECTML)
    assert message == "DirectML needs Windows"
    assert remedy == ["On this system, use an artifact that was converted for the CPU (gptoss convert --target cpu)."]


@pytest.mark.parametrize(
    ("version", "specifier", "allowed"),
    [
        ("1.32.0", ">=1.32", True),
        ("1.9", ">=1.10", False),
        ("1.24.4", ">=1.24.4,<1.25", True),
        ("1.25.0", ">=1.24.4,<1.25", False),
        ("1.30.0.202609102321", ">1.30", True),
        ("1.24.4.post1", "==1.24.4", True),
        ("2.0", "!=2", False),
        ("1.0", "<=1", True),
        ("5.3", "~=5.0", True),
        ("1.0", "~=5.0", False),
        ("1.24.4", "==1.24.*", True),
        ("1.33.0.dev20260901", ">=1.33", True),  # a nightly build counts as the release it leads to
        ("1.32.0+cpu", "==1.32", True),
        ("1.32.0rc1", ">=1.32,<2", True),
        ("1.0", "newest", True),  # PEP 440 does not define these clauses, so they are ignored
        ("1.0", "^5.0", True),
        ("1.0", "", True),
        ("1.0", "newest,>=2", False),
        ("", ">=1", False),
        ("unknown", ">=1", False),
        ("unknown", "newest", True),
    ],
)
def test_satisfies(version: str, specifier: str, allowed: bool) -> None:
    assert installed.satisfies(version, specifier) is allowed


@given(st.text(), st.text())
def test_satisfies_accepts_any_text(version: str, specifier: str) -> None:
    assert installed.satisfies(version, specifier) in (True, False)


def test_find_unmet() -> None:
    assert installed.find_unmet({"onnxruntime": ">=1.32", "onnxruntime-genai": ">=0.18"}, CPU) == []
    assert installed.find_unmet({"onnxruntime": ">=1.32", "onnxruntime-genai": ">=0.9"}, DIRECTML) == [
        "onnxruntime>=1.32 (1.24.4 is installed)"
    ]
    assert installed.find_unmet({"onnxruntime-directml": ">=1.24.4"}, CPU) == [
        "onnxruntime-directml>=1.24.4 (is not installed)"
    ]
