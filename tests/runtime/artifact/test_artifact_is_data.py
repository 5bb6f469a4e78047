"""An artifact runs no code: every way to have one run is tried, on the real onnxruntime-genai, and is refused by name.

Where it can be shown, the attack is first carried out on plain onnxruntime-genai in a process of its own: a test whose
attack does nothing would prove nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gptoss_runtime import ArtifactError, Chat, Engine, GenerationOptions, ResourceError, load_engine
from gptoss_runtime.artifact import genai_config
from gptoss_runtime.artifact.folder import Artifact, check_contents
from gptoss_runtime.cli.main import app
from gptoss_runtime.engine import genai_model
from gptoss_runtime.engine.genai import GenaiEngine, import_genai
from gptoss_runtime.server.served_models import ServedModels

GREEDY = GenerationOptions(temperature=0, max_new_tokens=4, stop_token_ids=())
PROMPT = [200006, 1428, 200008, 24912, 200007, 200006, 173781]
CONFIG = "genai_config.json"
PLAIN = """
import sys, onnxruntime_genai as og
og.disable_telemetry_events()
og.Model(sys.argv[1])
"""


@pytest.fixture
def folder(nano_artifact: Path, tmp_path: Path) -> Path:
    """nano, to be changed: every file may be replaced, none may be written to."""
    folder = tmp_path / "artifact"
    link(nano_artifact, folder)
    return folder


def link(artifact: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in artifact.iterdir():
        os.link(path, folder / path.name)
    return folder


def replace(path: Path, content: bytes | str) -> None:
    """Another file in a file's place."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def configure(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    change(config)
    replace(folder / CONFIG, json.dumps(config))


def session(folder: Path, key: str, value: object) -> None:
    configure(folder, lambda config: config["model"]["decoder"]["session_options"].update({key: value}))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Written by the library below as soon as it is loaded."""
    return tmp_path / "it-ran"


@pytest.fixture
def library(folder: Path, marker: Path) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler to build a library with")
    source = f"""#include <fcntl.h>
    __attribute__((constructor)) static void run(void) {{ creat({json.dumps(str(marker))}, 0600); }}"""
    built = folder / "harmless.so"
    line = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(built)]
    subprocess.run(line, input=source.encode(), check=True, timeout=60)
    return built


def plain_genai(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=folder.parent,
        timeout=120,
    )


@pytest.mark.parametrize("absolute", [False, True])
def test_no_library_of_an_artifact_is_loaded(
    folder: Path, library: Path, marker: Path, absolute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(folder, "custom_ops_library", str(library) if absolute else library.name)
    plain_genai(folder)
    assert marker.exists(), "the attack itself does not work"
    marker.unlink()
    key = r"'model\.decoder\.session_options\.custom_ops_library' is not an allowed key"
    with pytest.raises(ArtifactError, match=key) as caught:
        load_engine(folder)
    assert "they would load that library and run its code" in str(caught.value.remedy)
    planted = folder.parent / "artifacts" / "gptoss-nano" / "cpu"
    planted.parent.mkdir(parents=True)
    folder.rename(planted)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("GPTOSS_CACHE", str(folder.parent / "cache"))
    monkeypatch.delenv("GPTOSS_ARTIFACTS", raising=False)
    for command in (
        ["generate", "gptoss-nano", "--prompt", "hi"],
        ["generate", str(planted), "--prompt", "hi"],
        ["chat", str(planted)],
        ["bench", str(planted)],
        ["inspect", str(planted)],
        ["inspect", str(planted), "--no-verify"],
        ["serve", str(planted), "--port", "0"],
    ):
        result = CliRunner().invoke(app, command, input="hi\n")
        assert result.exit_code == 4, result.output
        assert "custom_ops_library" in result.stderr
    assert not marker.exists()


def test_no_file_is_written_for_an_artifact(folder: Path, tmp_path: Path) -> None:
    session(folder, "enable_profiling", str(tmp_path / "trace"))
    plain_genai(folder)
    written = list(tmp_path.glob("trace*"))
    assert written, "the attack itself does not work"
    for path in written:
        path.unlink()
    with pytest.raises(ArtifactError, match="enable_profiling") as caught:
        load_engine(folder)
    assert "write files there" in str(caught.value.remedy)
    assert not list(tmp_path.glob("trace*"))


def test_a_graphs_metadata_are_no_settings(folder: Path, tmp_path: Path) -> None:
    """Where ORT_LOAD_CONFIG_FROM_MODEL is set, onnxruntime takes session options from a graph's metadata."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    settings = {"session_options": {"enable_profiling": 1}}
    model.metadata_props.add(key="ort_config", value=json.dumps(settings))
    replace(folder / "model.onnx", model.SerializeToString())
    done = plain_genai(folder, ORT_LOAD_CONFIG_FROM_MODEL="1")
    assert list(tmp_path.rglob("onnxruntime_profile_*")), f"the attack itself does not work: {done.stderr}"
    with pytest.raises(ArtifactError, match="its metadata has 'ort_config'"):
        load_engine(folder)


ATTACKS: list[tuple[str, object]] = [
    ("model.decoder.session_options.ep.context_enable", "1"),
    ("model.decoder.session_options.ep.context_file_path", "x.onnx"),
    ("model.decoder.session_options.session.model_external_initializers_file_folder_path", "/etc"),
    ("model.decoder.session_options.session.collect_node_memory_stats_to_file", "x.csv"),
    ("model.decoder.session_options.session.load_model_format", "ORT"),
    ("model.decoder.session_options.session.use_ort_model_bytes_directly", "1"),
    ("model.decoder.session_options.intra_op_num_threads", 10**6),
    ("model.decoder.session_options.intra_op_num_threads", True),
    ("model.decoder.session_options.log_id", "%n"),
    ("model.decoder.run_options", {"enable_profiling": "x"}),
    ("model.decoder.filename", ["model.onnx"]),
    ("model.decoder.pipeline", [{"one": {"filename": "model.onnx"}}]),
    ("model.decoder.shared_initializers", [{"data_file": "/etc/passwd"}]),
    ("model.decoder.inputs.past_key_names", "%d%n"),
    ("model.decoder.inputs.past_key_names", "%s"),
    ("model.decoder.inputs.past_key_names", "%99d"),
    ("model.decoder.inputs.past_key_names", "past"),
    ("model.decoder.inputs.past_key_names", "%d" + "x" * 62),
    ("model.decoder.inputs.input_ids", "%s"),
    ("model.decoder.outputs.present_value_names", "%d.%d"),
    ("model.decoder.outputs.logits", "a\nb"),
    ("model.decoder.num_hidden_layers", 10**9),
    ("model.decoder.head_size", -1),
    ("model.decoder.sliding_window", {"window_size": 8, "layers": [-1]}),
    ("model.decoder.sliding_window", {"window_size": 8, "library": "x"}),
    ("model.vision", {"filename": "model.onnx", "adapter_filename": "x"}),
    ("model.encoder", {}),
    ("model.draft", {"filename": "model.onnx"}),
    ("model.type", "../x"),
    ("model.eos_token_id", []),
    ("model.bos_token_id", None),
    ("model.tokenizer_dir", "/etc"),
    ("search.chunk_size", -1),
    ("search.temperature", "hot"),
    ("search.guidance_library", "x"),
    ("engine", {"dynamic_batching": {}}),
    ("speculative", {}),
    ("anything", 1),
]
PROVIDERS: list[tuple[str, list[Any]]] = [
    ("qnn", [{"qnn": {"backend_path": "libevil.so"}}]),
    ("QNNExecutionProvider", [{"QNNExecutionProvider": {}}]),
    ("OpenVINO", [{"OpenVINO": {"cache_dir": "/tmp"}}]),
    ("gpu_external_alloc", [{"cuda": {"gpu_external_alloc": "1234"}}]),
    ("user_compute_stream", [{"CUDAExecutionProvider": {"user_compute_stream": "1234"}}]),
    ("dawnProcTable", [{"webgpu": {"dawnProcTable": "1234"}}]),
    ("device_filtering_options", [{"cuda": {"device_filtering_options": {}}}]),
    ("enable_cuda_graph", [{"cuda": {"enable_cuda_graph": 1}}]),
    ("twice", [{"cuda": {}}, {"CUDA": {}}]),
    ("provider_options", {"cuda": {}}),
    ("provider_options", [["cuda"]]),
    ("cuda", [{"cuda": "on"}]),
]


def put(config: dict[str, Any], path: str, value: object) -> None:
    """Sets a key; the names of session options have dots themselves."""
    head, options, key = path.partition("session_options.")
    *parents, last = (*head.split(".")[:-1], "session_options", key) if options else path.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


@pytest.mark.parametrize(("path", "value"), ATTACKS)
def test_a_key_or_a_value_that_is_not_listed_is_refused_by_name(folder: Path, path: str, value: object) -> None:
    configure(folder, lambda config: put(config, path, value))
    with pytest.raises(ArtifactError) as caught:
        load_engine(folder)
    assert path in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(("named", "options"), PROVIDERS)
def test_what_a_provider_is_told_is_listed(folder: Path, named: str, options: object) -> None:
    session(folder, "provider_options", options)
    with pytest.raises(ArtifactError, match=named):
        load_engine(folder)


@pytest.mark.parametrize(
    "text",
    [
        '{"model": %s, "model": %s}',
        '{"model": {"decoder": {"session_options": {"custom_ops_library": "x"}, "session_options": {}}}, "x": %s}',
    ],
)
def test_a_key_that_is_there_twice_is_refused(folder: Path, text: str) -> None:
    model = json.dumps(json.loads((folder / CONFIG).read_text("utf-8"))["model"])
    replace(folder / CONFIG, text.replace("%s", model))
    with pytest.raises(ArtifactError, match=r"genai_config\.json is not valid JSON: duplicate key '\w+'"):
        load_engine(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_refused(folder: Path, number: str) -> None:
    content = (folder / CONFIG).read_text("utf-8").replace('"do_sample": false', f'"temperature": {number}')
    assert number in content
    replace(folder / CONFIG, content)
    with pytest.raises(ArtifactError, match="not a JSON number"):
        load_engine(folder)


def test_a_number_beyond_a_float_is_refused(folder: Path) -> None:
    """Python reads it as infinite."""
    content = (folder / CONFIG).read_text("utf-8").replace('"do_sample": false', '"temperature": -1e400')
    assert "1e400" in content
    replace(folder / CONFIG, content)
    with pytest.raises(ArtifactError, match="the number -1e400 is too large"):
        load_engine(folder)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "tokenizer_config.json", "inference_model.json"])
def test_every_json_file_is_read_as_strictly(folder: Path, name: str) -> None:
    content = (folder / name).read_text("utf-8")
    key = next(iter(json.loads(content)))
    replace(folder / name, content.replace("{", f'{{"{key}": null, ', 1))
    with pytest.raises(ArtifactError, match=rf"{name} is not valid JSON: duplicate key '{key}'"):
        check_contents(folder)
    if name == "manifest.json":
        with pytest.raises(ArtifactError, match="duplicate key"):
            Artifact.open(folder)
    if name == "tokenizer.json":
        from gptoss_runtime.engine.grammar import preload_vocabulary

        with pytest.raises(ArtifactError, match="duplicate key"):
            Chat.load(folder)
        with pytest.raises(ArtifactError, match="duplicate key"):
            preload_vocabulary(folder / name)


def test_stock_configurations_load(folder: Path) -> None:
    """What onnxruntime-genai's model builder writes for a decoder; how to sample stays behind."""

    def change(config: dict[str, Any]) -> None:
        config["model"]["decoder"]["session_options"] |= {
            "provider_options": [{"CUDAExecutionProvider": {"enable_cuda_graph": "0"}}],
            "intra_op_num_threads": 2,
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "session.intra_op.allow_spinning": "0",
        }
        config["search"] |= {
            **{"diversity_penalty": 0.0, "do_sample": True, "early_stopping": True, "length_penalty": 1.0},
            **{"min_length": 5000, "no_repeat_ngram_size": 1, "num_beams": 1, "num_return_sequences": 1},
            **{"repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0},
        }

    with load_engine(folder, threads=1) as engine:
        expected = list(engine.generate(PROMPT, GREEDY))
    configure(folder, change)
    with load_engine(folder, threads=1) as engine:
        assert list(engine.generate(PROMPT, GREEDY)) == expected
    composed = genai_config.compose(Artifact.open(folder).config, "w")
    assert composed["search"] == {"past_present_share_buffer": True}
    assert composed["model"]["decoder"]["session_options"]["provider_options"] == [{"cuda": {"enable_cuda_graph": "0"}}]


class Watched:
    """onnxruntime-genai, with what happens just before a configuration is read and a model is loaded."""

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


def test_genai_sees_a_configuration_of_ours_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_configuration_that_is_swapped_after_the_check(
    folder: Path, library: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(monkeypatch, config=lambda _: session(folder, "custom_ops_library", str(library)))
    with load_engine(folder, threads=1) as engine:
        assert len(list(engine.generate(PROMPT, GREEDY))) == 4
    assert "custom_ops_library" in (folder / CONFIG).read_text("utf-8")
    assert not marker.exists()


def test_a_graph_that_is_swapped_after_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = (folder / "model.onnx").read_bytes() + b"\x32\x01x"  # a doc_string more
    artifact = Artifact.open(folder)
    replace(folder / "model.onnx", other)
    with pytest.raises(ArtifactError, match=r"model\.onnx changed while it was being loaded"):
        GenaiEngine(artifact, threads=1)
    Artifact.open(folder)  # a harmless one: that it is another is enough
    watch(monkeypatch, model=lambda: replace(folder / "model.onnx", b"what is loaded was read before"))
    with load_engine(folder, threads=1) as engine:
        assert len(list(engine.generate(PROMPT, GREEDY))) == 4


def test_weights_that_are_swapped_after_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap() -> None:
        content = bytearray((folder / "model.onnx.data").read_bytes())
        replace(folder / "model.onnx.data", bytes(content[::-1]))

    watch(monkeypatch, model=swap)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data changed while it was being loaded"):
        load_engine(folder, threads=1)


def test_a_folder_that_is_swapped_after_the_check(nano_artifact: Path, folder: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(folder)
    folder.rename(tmp_path / "away")
    with pytest.raises(ArtifactError, match="is missing"):
        GenaiEngine(artifact, threads=1)
    link(nano_artifact, folder)
    replace(folder / "model.onnx.data", (folder / "model.onnx.data").read_bytes())
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data changed"):
        GenaiEngine(artifact, threads=1)


def test_checksums_are_those_of_what_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that is read, and is put right before its checksum is made."""
    right = (folder / CONFIG).read_bytes()
    session(folder, "log_id", "wrong")

    def put_right(checked: Path, manifest: object) -> None:
        replace(checked / CONFIG, right)

    monkeypatch.setattr("gptoss_runtime.artifact.folder.verify_checksums", put_right)
    with pytest.raises(ArtifactError, match=r"genai_config\.json changed"):
        load_engine(folder, verify=True)


def test_weights_on_another_drive_are_linked_to(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Windows does not say how to go from one drive to another."""

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
    if sys.platform != "win32":  # there it is a junction then
        with pytest.raises(ResourceError, match="cannot reach") as caught:
            load_engine(folder, threads=1)
        assert "TEMP" in str(caught.value.remedy)


def test_an_older_genai_is_told_the_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """0.13.1, the last with DirectML; it leaves the working folder changed."""
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
def test_any_folder_loads(nano_artifact: Path, engine: Engine, tmp_path: Path, name: str) -> None:
    folder = link(nano_artifact, tmp_path / name / name)
    with load_engine(folder, threads=1) as other:
        assert list(other.generate(PROMPT, GREEDY)) == list(engine.generate(PROMPT, GREEDY))


def test_a_graph_in_a_folder_of_its_own(folder: Path, engine: Engine) -> None:
    (folder / "graphs").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(folder / "graphs" / name)
    configure(folder, lambda config: config["model"]["decoder"].update(filename="graphs/model.onnx"))
    with load_engine(folder, threads=1) as other:
        assert np.array_equal(other.logits(PROMPT), engine.logits(PROMPT))


def test_no_template_is_rendered_and_no_tokenizer_of_genais_made(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, which imports nothing before: what loads and answers there is what would."""
    replace(folder / "chat_template.jinja", "{{ cycler.__init__.__globals__.os.mknod('it-ran') }}")
    script = """
import sys
import onnxruntime_genai as og
from gptoss_runtime import Chat, GenerationOptions
def refuse(*_): raise AssertionError("a tokenizer of genai's")
og.Tokenizer = refuse
Chat.load(sys.argv[1], options=GenerationOptions(max_new_tokens=2)).send("hello")
print(sorted({"jinja2", "transformers", "minijinja", "tokenizers"} & set(sys.modules)))
"""
    line = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.stdout == "[]\n", done.stderr
    assert not (tmp_path / "it-ran").exists()


def test_a_server_does_not_list_what_it_would_not_load(folder: Path, nano_artifact: Path) -> None:
    served = ServedModels({"good": nano_artifact, "bad": folder})
    assert len(served.list_models()) == 2
    session(folder, "custom_ops_library", "x.so")
    assert [model.id for model in served.list_models()] == ["good"]
    with pytest.raises(ArtifactError, match="custom_ops_library"):
        served.find("bad")
