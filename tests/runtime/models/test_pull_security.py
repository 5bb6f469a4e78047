"""Pulling from an untrusted hub: unsafe names and contents are rejected, and secrets are never shown."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime.artifact.manifest import MANIFEST
from gptoss_runtime.artifact.safe_names import check_file_names, is_name, is_safe_path
from gptoss_runtime.errors import ArtifactError, GptOssError
from tests.runtime.models.hub_server import SECRET, SIGNATURE, HubServer
from tests.runtime.models.pulling import NAME, WEIGHTS, registry, write_manifest

EVIL = [
    "../evil",
    "cpu/../../evil",
    "/etc/passwd",
    "C:/Windows/win.ini",
    "cpu\\..\\evil",
    "NUL",
    "cpu/con.txt",
    "cpu/file:stream",
    "cpu/COM1",
    "cpu/trailing.",
    "cpu/trailing ",
    "cpu//double",
    "cpu/./dot",
    "cpu/nul\0byte",
    "cpu/Tokenizer.JSON",
]


@pytest.mark.parametrize("evil", EVIL)
def test_a_repository_with_unsafe_names_is_rejected(evil: str, hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    hub.files[evil] = b"evil"
    with pytest.raises(ArtifactError) as raised:
        registry(hub, tmp_path / "cache").pull(NAME)
    assert "Do not trust" in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*evil*"))
    assert hub.asked == []


@pytest.mark.parametrize("evil", ["../../evil", "NUL", "sub/../../x"])
def test_a_manifest_with_unsafe_names_is_rejected(evil: str, hub: HubServer, small: Path, tmp_path: Path) -> None:
    manifest = json.loads((small / MANIFEST).read_text())
    manifest["files"][evil] = {"size": 4, "sha256": "0" * 64}
    (small / MANIFEST).write_text(json.dumps(manifest))
    hub.add(small, "cpu/")
    with pytest.raises(ArtifactError, match="does not have a name that is safe"):
        registry(hub, tmp_path / "cache").pull(NAME)


def test_a_graph_outside_the_folder_is_rejected(hub: HubServer, small: Path, tmp_path: Path) -> None:
    config = json.loads((small / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "../../model.onnx"
    (small / "genai_config.json").write_text(json.dumps(config))
    write_manifest(small)
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path)
    with pytest.raises(ArtifactError, match="outside itself"):
        models.pull(NAME)
    assert models.list(here=True) == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("genai_config.json", b"custom_ops_library", "custom_ops_library"),
        ("model.onnx", b"\x08\x0b\x3a\x0c\x0a\x0a\x22\x02Op\x3a\x04evil", "domain 'evil'"),
        ("second.onnx", b"\x08\x0b\x42\x06\x0a\x04evil", "domain 'evil'"),
        ("tokenizer.json", b'{"a": 1, "a": 2}', "duplicate key"),
        ("extra/tokenizer_config.json", b'{"a": NaN}', "not a JSON number"),
    ],
)
def test_unsafe_content_is_rejected_before_the_weights_are_downloaded(
    name: str, content: bytes, words: str, hub: HubServer, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_runtime.models.pulling._LARGE", 1 << 20)
    if name == "genai_config.json":
        config = json.loads((small / name).read_text())
        config["model"]["decoder"]["session_options"] = {content.decode(): "evil.so"}
        content = json.dumps(config).encode()
    (small / name).parent.mkdir(exist_ok=True)
    (small / name).write_bytes(content)
    write_manifest(small)
    hub.add(small, "cpu/")
    models = registry(hub, tmp_path / "cache")
    with pytest.raises(ArtifactError, match=words):
        models.pull(NAME)
    assert models.list(here=True) == ()
    assert hub.gets(f"cpu/{WEIGHTS}") == []


def test_a_repository_without_a_listed_file(hub: HubServer, small: Path, tmp_path: Path) -> None:
    hub.add(small, "cpu/")
    del hub.files[f"cpu/{WEIGHTS}"]
    with pytest.raises(ArtifactError, match="is missing, or its size differs"):
        registry(hub, tmp_path).pull(NAME)
    del hub.files[f"cpu/{MANIFEST}"]
    with pytest.raises(ArtifactError, match=r"no usable cpu/manifest\.json"):
        registry(hub, tmp_path).pull(NAME)


def test_tokens_and_signed_urls_are_never_shown(
    hub: HubServer, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    hub.add(small, "cpu/")
    hub.status[f"cpu/{WEIGHTS}"] = 500
    said = ""
    for _ in range(2):
        try:
            registry(hub, tmp_path).pull(NAME)
        except GptOssError as error:
            said += str(error)
        hub.status.clear()
    shown = (
        said
        + "".join(capfd.readouterr())
        + "".join(one.getMessage() for one in caplog.records if "httpx" not in one.name)
    )
    assert "status 500" in said
    assert SECRET not in shown + caplog.text
    assert SIGNATURE not in shown
    assert not any(SECRET in path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))


@given(st.text(max_size=30))
def test_a_safe_name_never_leaves_its_folder(text: str) -> None:
    if is_name(text):
        assert (Path("root") / text).parent == Path("root")
        assert text.isascii()
    if is_safe_path(text):
        check_file_names("someone/small", [text])
        assert Path(os.path.normpath(Path("root") / text)).parts[0] == "root"
        assert "\0" not in text
