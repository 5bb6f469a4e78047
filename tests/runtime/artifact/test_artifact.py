from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_runtime import ArtifactError, BackendError, load_engine
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.artifact.manifest import FileEntry, Manifest, MemoryBudget, Source
from gptoss_runtime.artifact.onnx_file import ExternalSpan, find_external_data
from gptoss_runtime.engine.options import GenerationOptions

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
    """Writes a graph with one external tensor at the top level and one inside an If."""

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


def expect_error(folder: Path, words: str, **options: bool) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        Artifact.open(folder, **options)
    assert caught.value.remedy


def test_a_complete_folder(folder: Path) -> None:
    artifact = Artifact.open(folder)
    assert (artifact.name, artifact.target, artifact.context_length) == ("artifact", "unknown", 64)
    assert artifact.eos_token_ids == (98, 99)
    assert find_external_data((folder / "model.onnx").read_bytes()) == {ExternalSpan("model.onnx.data", 0, 64)}


def test_a_converted_artifact(nano_artifact: Path) -> None:
    artifact = Artifact.open(nano_artifact)
    assert artifact.vocab_size == 201088
    assert 200002 in artifact.eos_token_ids


def test_folders_that_are_not_artifacts(tmp_path: Path) -> None:
    expect_error(tmp_path / "nowhere", "does not exist")
    expect_error(tmp_path, "not an artifact")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(tmp_path)
    assert "gptoss convert" in str(caught.value.remedy)
    expect_error(tmp_path / "config.json", "not an artifact")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx", "model.onnx.data"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    expect_error(folder, f"{name} is missing")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../outside.data",
            "/etc/passwd",
            "C:\\x.data",
            "..\\outside.data",
            "\\\\server\\share\\x",
            "",
            "a\0b",
            "C:x",
        ),
        *("sub/../../outside.data", "//server/share/x", "NUL", "con.data", "COM1", "model.onnx.data:stream", "model. "),
    ],
)
def test_paths_outside_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "outside.data").write_bytes(bytes(64))
    write_model(folder / "model.onnx", name)
    expect_error(folder, "outside itself")
    config = json.loads(json.dumps(CONFIG))
    config["model"]["decoder"]["filename"] = name
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    expect_error(folder, "outside itself")


def link(path: Path, to: Path) -> None:
    try:
        path.symlink_to(to, target_is_directory=to.is_dir())
    except OSError:
        pytest.skip("creating links needs a privilege here")


@pytest.mark.parametrize(
    "name", ["model.onnx.data", "model.onnx", "genai_config.json", "tokenizer.json", "manifest.json"]
)
def test_a_link_to_a_file_outside_the_folder(folder: Path, name: str) -> None:
    (folder / "manifest.json").write_bytes(tiny_manifest("0" * 64).to_bytes())
    outside = folder.parent / name
    (folder / name).rename(outside)
    link(folder / name, outside)
    expect_error(folder, f"{name} is a link to a file outside")


def test_a_linked_subfolder(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / "model.onnx.data").rename(outside / "w.data")
    write_model(folder / "model.onnx", "sub/w.data")
    link(folder / "sub", outside)
    expect_error(folder, "outside the folder")


def test_inner_links_and_hard_links_are_allowed(folder: Path) -> None:
    """A hard link is an ordinary file; checksums verify its content."""
    outside = folder.parent / "outside.data"
    (folder / "model.onnx.data").rename(outside)
    (folder / "w.data").hardlink_to(outside)
    link(folder / "model.onnx.data", folder / "w.data")
    digest = hashlib.sha256(bytes(64)).hexdigest()
    (folder / "manifest.json").write_bytes(tiny_manifest(digest).to_bytes())
    Artifact.open(folder, verify=True)
    outside.write_bytes(b"x" * 64)
    expect_error(folder, "differs from the manifest", verify=True)


@pytest.mark.parametrize(("offset", "length"), [(1, 64), (100, 0), (0, 65), (-1, 4)])
def test_truncated_weights(folder: Path, offset: int, length: int) -> None:
    write_model(folder / "model.onnx", "model.onnx.data", offset, length)
    expect_error(folder, "truncated")


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '{"model": 1}', '{"model": {}}', "[" * 100_000])
def test_malformed_config(folder: Path, text: str) -> None:
    (folder / "genai_config.json").write_text(text, encoding="utf-8")
    expect_error(folder, "genai_config")


@pytest.mark.parametrize(
    ("key", "value"),
    [("context_length", 0), ("vocab_size", "x"), ("vocab_size", True), ("eos_token_id", 100), ("eos_token_id", ["a"])],
)
def test_invalid_numbers(folder: Path, key: str, value: object) -> None:
    config = {"model": CONFIG["model"] | {key: value}}
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    expect_error(folder, key)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_graph_never_crashes_the_reader(folder: Path, data: st.DataObject) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        find_external_data(bytes(content))


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


def test_another_models_weights(folder: Path, tmp_path: Path) -> None:
    """Weights of the same size from another model: only the manifest shows the difference."""
    digest = hashlib.sha256((folder / "model.onnx.data").read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(tiny_manifest(digest).to_bytes())
    other = tmp_path / "other.data"
    other.write_bytes(b"y" * 64)
    other.replace(folder / "model.onnx.data")
    expect_error(folder, "differs from the manifest", verify=True)


@pytest.mark.parametrize("vocab_size", [1000, 300_000])
def test_a_vocabulary_size_that_differs_from_the_graph(vocab_size: int, nano_artifact: Path, tmp_path: Path) -> None:
    for path in nano_artifact.iterdir():
        if path.name != "genai_config.json":
            os.link(path, tmp_path / path.name)
    config = json.loads((nano_artifact / "genai_config.json").read_text(encoding="utf-8"))
    config["model"] |= {"vocab_size": vocab_size, "eos_token_id": [1]}
    (tmp_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    with load_engine(tmp_path, threads=1) as engine:
        for _ in range(2):  # neither a crash nor an answer
            with pytest.raises(BackendError, match="logits"):
                list(engine.generate([5, 6, 7], GenerationOptions(max_new_tokens=2)))


def test_a_manifest_of_a_newer_schema_is_rejected(folder: Path) -> None:
    newer = {**json.loads(tiny_manifest("0" * 64).to_bytes()), "schema_version": 2}
    (folder / "manifest.json").write_text(json.dumps(newer), encoding="utf-8")
    expect_error(folder, "schema_version")
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    expect_error(folder, "manifest")


def test_checksums(folder: Path) -> None:
    expect_error(folder, "manifest", verify=True)
    digest = hashlib.sha256((folder / "model.onnx.data").read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(tiny_manifest(digest).to_bytes())
    assert Artifact.open(folder, verify=True).name == "tiny"
    (folder / "model.onnx.data").write_bytes(b"x" * 64)
    Artifact.open(folder)
    expect_error(folder, "differs from the manifest", verify=True)
