"""Which builds go together, by made-up lists of what is installed."""

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


def refusal(found: dict[str, str]) -> tuple[str, list[str]]:
    with pytest.raises(BackendUnavailable) as raised:
        installed.require_directml(found)
    return raised.value.message, (raised.value.remedy or "").splitlines()


def test_what_is_installed_here() -> None:
    found = installed.installed()
    for name, version in found.items():
        assert version == metadata.version(name)
    assert "numpy" not in found


def test_both_builds_and_no_others() -> None:
    installed.require_directml(DIRECTML)
    installed.require("cpu", DIRECTML)
    installed.require("cpu", CPU)


def test_nothing() -> None:
    message, remedy = refusal({})
    assert message == "no build of onnxruntime is installed"
    assert remedy == [INSTALL]
    message, remedy = refusal({"onnxruntime-directml": "1.24.4"})
    assert message == "no build of onnxruntime-genai is installed"


def test_two_builds_side_by_side() -> None:
    """Both are removed: what is left of the right one has been overwritten."""
    message, remedy = refusal(DIRECTML | {"onnxruntime": "1.32.0"})
    assert message.startswith("onnxruntime and onnxruntime-directml are installed side by side")
    assert remedy[:2] == ["pip uninstall -y onnxruntime onnxruntime-directml", INSTALL]
    _, remedy = refusal(DIRECTML | CPU)
    names = "onnxruntime onnxruntime-directml onnxruntime-genai onnxruntime-genai-directml"
    assert remedy[0] == f"pip uninstall -y {names}"
    assert installed.conflicts(DIRECTML | CPU) == [names.split()[:2], names.split()[2:]]
    with pytest.raises(BackendUnavailable, match="side by side") as raised:
        installed.require("cpu", CPU | {"onnxruntime-gpu": "1.31.1"})
    assert 'pip install "gptoss-windows[cpu]"' in (raised.value.remedy or "")


def test_builds_without_directml() -> None:
    message, remedy = refusal(CPU)
    assert message == "onnxruntime and onnxruntime-genai are installed instead of the build for DirectML"
    assert remedy[:2] == ["pip uninstall -y onnxruntime onnxruntime-genai", INSTALL]
    message, remedy = refusal({"onnxruntime-directml": "1.24.4", "onnxruntime-genai-cuda": "0.18.0"})
    assert message == "onnxruntime-genai-cuda is installed instead of the build for DirectML"
    assert remedy[0] == "pip uninstall -y onnxruntime-genai-cuda"


def test_every_line_to_type_works_in_any_shell() -> None:
    for found in (DIRECTML | CPU, CPU, {}):
        assert not any(sign in line for line in refusal(found)[1] for sign in ("&&", "'", "|", "$"))


def test_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "WINDOWS", False)
    message, remedy = refusal(DIRECTML)
    assert message == "DirectML needs Windows"
    assert remedy == ["Use --provider cpu here."]


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
        ("1.0", "~=5.0", True),  # not known here, so allowed
        ("", ">=1", False),
    ],
)
def test_versions(version: str, specifier: str, allowed: bool) -> None:
    assert installed.satisfies(version, specifier) is allowed


@given(st.text(), st.text())
def test_any_text_is_judged(version: str, specifier: str) -> None:
    assert installed.satisfies(version, specifier) in (True, False)


def test_what_an_artifact_asks_for() -> None:
    assert installed.unmet({"onnxruntime": ">=1.32", "onnxruntime-genai": ">=0.18"}, CPU) == []
    assert installed.unmet({"onnxruntime": ">=1.32", "onnxruntime-genai": ">=0.9"}, DIRECTML) == [
        "onnxruntime>=1.32 (1.24.4 is installed)"
    ]
    assert installed.unmet({"onnxruntime-directml": ">=1.24.4"}, CPU) == [
        "onnxruntime-directml>=1.24.4 (is not installed)"
    ]
