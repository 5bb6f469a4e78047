"""An artifact runs no code: every known attack is tried on the real onnxruntime-genai, and is rejected by name.

Where possible, a test first carries out the attack on plain onnxruntime-genai in a separate process, which shows that
the attack works without gptoss.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gptoss_runtime import ArtifactError, Chat, load_engine
from gptoss_runtime.artifact import genai_config
from gptoss_runtime.artifact.folder import Artifact, check_contents
from gptoss_runtime.cli.main import app
from gptoss_runtime.server.served_models import ServedModels
from tests.runtime.artifact.changes import CONFIG, GREEDY, PROMPT, configure, replace, session

PLAIN = """
import sys, onnxruntime_genai as og
og.disable_telemetry_events()
og.Model(sys.argv[1])
"""


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
    assert marker.exists(), "the attack does not work without gptoss"
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
    assert written, "the attack does not work without gptoss"
    for path in written:
        path.unlink()
    with pytest.raises(ArtifactError, match="enable_profiling") as caught:
        load_engine(folder)
    assert "write files there" in str(caught.value.remedy)
    assert not list(tmp_path.glob("trace*"))


def test_graph_metadata_does_not_configure_onnxruntime(folder: Path, tmp_path: Path) -> None:
    """With ORT_LOAD_CONFIG_FROM_MODEL, onnxruntime reads session options from a graph's metadata."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    settings = {"session_options": {"enable_profiling": 1}}
    model.metadata_props.add(key="ort_config", value=json.dumps(settings))
    replace(folder / "model.onnx", model.SerializeToString())
    done = plain_genai(folder, ORT_LOAD_CONFIG_FROM_MODEL="1")
    assert list(tmp_path.rglob("onnxruntime_profile_*")), f"the attack does not work without gptoss: {done.stderr}"
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
    """Sets a key by its path; names of session options contain dots."""
    head, options, key = path.partition("session_options.")
    *parents, last = (*head.split(".")[:-1], "session_options", key) if options else path.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


@pytest.mark.parametrize(("path", "value"), ATTACKS)
def test_keys_and_values_that_are_not_allowed_are_rejected(folder: Path, path: str, value: object) -> None:
    configure(folder, lambda config: put(config, path, value))
    with pytest.raises(ArtifactError) as caught:
        load_engine(folder)
    assert path in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(("named", "options"), PROVIDERS)
def test_provider_options_that_are_not_allowed_are_rejected(folder: Path, named: str, options: object) -> None:
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
def test_duplicate_keys_are_rejected(folder: Path, text: str) -> None:
    model = json.dumps(json.loads((folder / CONFIG).read_text("utf-8"))["model"])
    replace(folder / CONFIG, text.replace("%s", model))
    with pytest.raises(ArtifactError, match=r"genai_config\.json is not valid JSON: duplicate key '\w+'"):
        load_engine(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_rejected(folder: Path, number: str) -> None:
    content = (folder / CONFIG).read_text("utf-8").replace('"do_sample": false', f'"temperature": {number}')
    assert number in content
    replace(folder / CONFIG, content)
    with pytest.raises(ArtifactError, match="not a JSON number"):
        load_engine(folder)


def test_a_number_too_large_for_a_float_is_rejected(folder: Path) -> None:
    """Python parses it as infinity."""
    content = (folder / CONFIG).read_text("utf-8").replace('"do_sample": false', '"temperature": -1e400')
    assert "1e400" in content
    replace(folder / CONFIG, content)
    with pytest.raises(ArtifactError, match="the number -1e400 is too large"):
        load_engine(folder)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "tokenizer_config.json", "inference_model.json"])
def test_every_json_file_is_parsed_strictly(folder: Path, name: str) -> None:
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
    """What onnxruntime-genai's model builder writes for a decoder; sampling options are not copied."""

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


def test_no_template_is_rendered_and_genais_tokenizer_is_not_used(folder: Path, tmp_path: Path) -> None:
    """In a new process, so that nothing else has imported a template engine or a tokenizer."""
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


def test_a_server_lists_only_artifacts_that_load(folder: Path, nano_artifact: Path) -> None:
    served = ServedModels({"good": nano_artifact, "bad": folder})
    assert len(served.list_models()) == 2
    session(folder, "custom_ops_library", "x.so")
    assert [model.id for model in served.list_models()] == ["good"]
    with pytest.raises(ArtifactError, match="custom_ops_library"):
        served.find("bad")
