"""Only checked bytes are loaded: changes after the check have no effect or are errors; and where weights are found."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptoss_runtime import ArtifactError, Engine, ResourceError, load_engine
from gptoss_runtime.artifact import genai_config
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.engine import genai_model
from gptoss_runtime.engine.genai import GenaiEngine, import_genai
from tests.runtime.artifact.changes import CONFIG, GREEDY, PROMPT, configure, link, replace, session


class Watched:
    """onnxruntime-genai with hooks that run before a configuration is read and before a model is loaded."""

    def __init__(self, config: Callable[[str], None], model: Callable[[], None]) -> None:
        genai = import_genai()

        class Config:
            from_package_ep = genai.Config.from_package_ep

            def __new__(cls, path: str) -> Any:
                config(path)
                return genai.Config(path)

        self.Config = Config

        def load(given: Any) -> Any:
            model()
            return genai.Model(given)

        self.Model = load

    def __getattr__(self, name: str) -> Any:
        return getattr(import_genai(), name)


def watch(
    monkeypatch: pytest.MonkeyPatch,
    *,
    config: Callable[[str], None] = lambda path: None,
    model: Callable[[], None] = lambda: None,
) -> None:
    monkeypatch.setattr("gptoss_runtime.engine.genai.import_genai", lambda: Watched(config, model))


def test_genai_reads_only_our_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def look(path: str) -> None:
        seen.append(Path(path))
        assert [file.name for file in seen[0].iterdir()] == [CONFIG]
        if sys.platform != "win32":
            assert stat.S_IMODE(seen[0].stat().st_mode) == 0o700
        artifact = Artifact.open(folder)
        weights = os.path.relpath(folder.resolve(), seen[0])
        assert json.loads((seen[0] / CONFIG).read_text("utf-8")) == genai_config.compose(artifact.config, weights)

    watch(monkeypatch, config=look)
    before = set(folder.iterdir())
    with load_engine(folder, threads=1) as engine:
        assert len(list(engine.generate(PROMPT, GREEDY))) == 4
    assert len(seen) == 1
    assert not seen[0].exists()
    assert set(folder.iterdir()) == before


def test_a_configuration_swapped_after_the_check(
    folder: Path, library: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(monkeypatch, config=lambda _: session(folder, "custom_ops_library", str(library)))
    with load_engine(folder, threads=1) as engine:
        assert len(list(engine.generate(PROMPT, GREEDY))) == 4
    assert "custom_ops_library" in (folder / CONFIG).read_text("utf-8")
    assert not marker.exists()


def test_a_graph_swapped_after_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = (folder / "model.onnx").read_bytes() + b"\x32\x01x"  # a doc_string more
    artifact = Artifact.open(folder)
    replace(folder / "model.onnx", other)
    with pytest.raises(ArtifactError, match=r"model\.onnx changed while it was being loaded"):
        GenaiEngine(artifact, threads=1)
    Artifact.open(folder)  # the new graph is harmless, but it differs from the checked one
    watch(monkeypatch, model=lambda: replace(folder / "model.onnx", b"not read, because the checked bytes are loaded"))
    with load_engine(folder, threads=1) as engine:
        assert len(list(engine.generate(PROMPT, GREEDY))) == 4


def test_weights_swapped_after_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap() -> None:
        content = bytearray((folder / "model.onnx.data").read_bytes())
        replace(folder / "model.onnx.data", bytes(content[::-1]))

    watch(monkeypatch, model=swap)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data changed while it was being loaded"):
        load_engine(folder, threads=1)


def test_a_folder_swapped_after_the_check(nano_artifact: Path, folder: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(folder)
    folder.rename(tmp_path / "away")
    with pytest.raises(ArtifactError, match="is missing"):
        GenaiEngine(artifact, threads=1)
    link(nano_artifact, folder)
    replace(folder / "model.onnx.data", (folder / "model.onnx.data").read_bytes())
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data changed"):
        GenaiEngine(artifact, threads=1)


def test_checksums_are_of_the_loaded_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that is corrected after it was read and before its checksum is computed."""
    right = (folder / CONFIG).read_bytes()
    session(folder, "log_id", "wrong")

    def put_right(checked: Path, manifest: object) -> None:
        replace(checked / CONFIG, right)

    monkeypatch.setattr("gptoss_runtime.artifact.folder.verify_checksums", put_right)
    with pytest.raises(ArtifactError, match=r"genai_config\.json changed"):
        load_engine(folder, verify=True)


def test_weights_on_another_drive_are_linked(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Windows has no relative path from one drive to another."""

    def refuse(*_: object) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(genai_model.os.path, "relpath", refuse)
    monkeypatch.setattr(genai_model.tempfile, "tempdir", str(tmp_path))
    before = {path.name for path in folder.iterdir()}
    with load_engine(folder, threads=1) as other:
        assert list(other.generate(PROMPT, GREEDY)) == list(engine.generate(PROMPT, GREEDY))
    assert {path.name for path in folder.iterdir()} == before
    assert not list(tmp_path.glob("gptoss-*"))

    def refuse_too(*_: object, **__: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse_too)
    if sys.platform != "win32":  # Windows creates a junction instead
        with pytest.raises(ResourceError, match="cannot reach") as caught:
            load_engine(folder, threads=1)
        assert "TEMP" in str(caught.value.remedy)


def test_an_older_genai_gets_an_absolute_path(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Version 0.13.1, the last with DirectML; it changes the working folder and does not restore it."""
    given: dict[str, Any] = {}

    class Config:
        def __init__(self, path: str) -> None:
            given["config"] = json.loads((Path(path) / CONFIG).read_text("utf-8"))
            given["folder"] = path

        def add_model_data(self, name: str, data: bytes) -> None:
            given[name] = data

    def load(_: Config) -> str:
        os.chdir(given["folder"])
        return "loaded"

    monkeypatch.chdir(tmp_path)
    genai: Any = SimpleNamespace(Config=Config, Model=load)
    assert genai_model.load_model(genai, Artifact.open(folder), lambda _: None) == "loaded"
    options = given["config"]["model"]["decoder"]["session_options"]
    assert options[genai_config.WEIGHTS] == str(folder.resolve())
    assert given["model.onnx"] == (folder / "model.onnx").read_bytes()
    assert Path.cwd() == tmp_path
    assert not Path(given["folder"]).exists()


@pytest.mark.parametrize("name", ["данные 模型", "a b'c", "Zoë"])
def test_a_folder_with_any_name_loads(nano_artifact: Path, engine: Engine, tmp_path: Path, name: str) -> None:
    folder = link(nano_artifact, tmp_path / name / name)
    with load_engine(folder, threads=1) as other:
        assert list(other.generate(PROMPT, GREEDY)) == list(engine.generate(PROMPT, GREEDY))


def test_a_graph_in_a_subfolder(folder: Path, engine: Engine) -> None:
    (folder / "graphs").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(folder / "graphs" / name)
    configure(folder, lambda config: config["model"]["decoder"].update(filename="graphs/model.onnx"))
    with load_engine(folder, threads=1) as other:
        assert np.array_equal(other.logits(PROMPT), engine.logits(PROMPT))
