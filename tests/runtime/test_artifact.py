from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_runtime import ArtifactError
from gptoss_runtime.artifact import Artifact
from gptoss_runtime.external_data import ExternalSpan, external_spans
from gptoss_runtime.manifest import FileEntry, Manifest, MemoryBudget, Source

CONFIG: dict[str, Any] = {
    "model": {
        "context_length": 64,
        "vocab_size": 100,
        "eos_token_id": [98, 99],
        "bos_token_id": 97,
        "decoder": {"filename": "model.onnx"},
    }
}


def write_model(path: Path, location: str, offset: int = 0, length: int = 64) -> None:
    """A graph with one external tensor at its top and one inside an If."""

    def tensor(name: str) -> onnx.TensorProto:
        value = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4, 4])
        value.data_location = onnx.TensorProto.EXTERNAL
        for key, text in {"location": location, "offset": str(offset), "length": str(length)}.items():
            value.external_data.add(key=key, value=text)
        return value

    branch = onnx.helper.make_graph([], "branch", [], [], [tensor("inner")])
    node = onnx.helper.make_node("If", ["condition"], ["out"], then_branch=branch, else_branch=branch)
    path.write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [tensor("w")])).SerializeToString()
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "genai_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "model.onnx.data").write_bytes(bytes(64))
    write_model(folder / "model.onnx", "model.onnx.data")
    return folder


def refused(folder: Path, words: str, **options: bool) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        Artifact.open(folder, **options)
    assert caught.value.remedy


def test_a_whole_folder(folder: Path) -> None:
    artifact = Artifact.open(folder)
    assert (artifact.name, artifact.target, artifact.context_length) == ("artifact", "unknown", 64)
    assert artifact.eos_token_ids == (98, 99)
    assert external_spans(folder / "model.onnx") == {ExternalSpan("model.onnx.data", 0, 64)}


def test_the_real_one(nano_artifact: Path) -> None:
    artifact = Artifact.open(nano_artifact)
    assert artifact.vocab_size == 201088
    assert 200002 in artifact.eos_token_ids


def test_what_is_not_an_artifact(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path, "not an artifact")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(tmp_path)
    assert "gptoss convert" in str(caught.value.remedy)
    refused(tmp_path / "config.json", "not an artifact")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx", "model.onnx.data"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


@pytest.mark.parametrize(
    "name",
    ["../outside.data", "/etc/passwd", "C:\\x.data", "..\\outside.data", "\\\\server\\share\\x", "", "a\0b", "C:x"],
)
def test_names_that_leave_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "outside.data").write_bytes(bytes(64))
    write_model(folder / "model.onnx", name)
    refused(folder, "outside itself")
    config = json.loads(json.dumps(CONFIG))
    config["model"]["decoder"]["filename"] = name
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    refused(folder, "outside itself")


def test_a_link_that_leaves_the_folder(folder: Path) -> None:
    outside = folder.parent / "outside.data"
    outside.write_bytes(bytes(64))
    (folder / "model.onnx.data").unlink()
    try:
        (folder / "model.onnx.data").symlink_to(outside)
    except OSError:
        pytest.skip("links need a privilege here")
    refused(folder, "leads out")


@pytest.mark.parametrize(("offset", "length"), [(1, 64), (100, 0), (0, 65), (-1, 4)])
def test_truncated_weights(folder: Path, offset: int, length: int) -> None:
    write_model(folder / "model.onnx", "model.onnx.data", offset, length)
    refused(folder, "truncated")


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '{"model": 1}', '{"model": {}}', "[" * 100_000])
def test_malformed_config(folder: Path, text: str) -> None:
    (folder / "genai_config.json").write_text(text, encoding="utf-8")
    refused(folder, "genai_config")


@pytest.mark.parametrize(
    ("key", "value"),
    [("context_length", 0), ("vocab_size", "x"), ("vocab_size", True), ("eos_token_id", 100), ("eos_token_id", ["a"])],
)
def test_impossible_numbers(folder: Path, key: str, value: object) -> None:
    config = {"model": CONFIG["model"] | {key: value}}
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    refused(folder, key)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_graph_never_crashes_the_reader(folder: Path, data: st.DataObject) -> None:
    path = folder.parent / "damaged.onnx"
    content = bytearray((folder / "model.onnx").read_bytes())
    content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        external_spans(path)


def tiny_manifest(digest: str) -> Manifest:
    return Manifest(
        name="tiny",
        target="cpu",
        preset="balanced",
        logits="last",
        requires={"onnxruntime": ">=1.32"},
        source=Source(name="tiny", revision=None, files={}),
        groups={},
        memory=MemoryBudget(weights=64, kv_per_token=8, context=64, peak=576),
        tools={},
        files={"model.onnx.data": FileEntry(size=64, sha256=digest)},
    )


def test_a_manifest_of_a_newer_schema_is_refused(folder: Path) -> None:
    newer = {**json.loads(tiny_manifest("0" * 64).to_bytes()), "schema_version": 2}
    (folder / "manifest.json").write_text(json.dumps(newer), encoding="utf-8")
    refused(folder, "schema_version")
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    refused(folder, "manifest")


def test_checksums(folder: Path) -> None:
    refused(folder, "manifest", verify=True)
    digest = hashlib.sha256((folder / "model.onnx.data").read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(tiny_manifest(digest).to_bytes())
    assert Artifact.open(folder, verify=True).name == "tiny"
    (folder / "model.onnx.data").write_bytes(b"x" * 64)
    Artifact.open(folder)
    refused(folder, "not the file", verify=True)
