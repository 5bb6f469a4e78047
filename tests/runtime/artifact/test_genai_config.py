"""The allowed keys of genai_config.json, tested with arbitrary changes to a configuration."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_runtime.artifact.genai_config import WEIGHTS, compose, find_problems

BASE: dict[str, Any] = {
    "model": {
        **{"type": "gptoss", "context_length": 4096, "vocab_size": 201088, "eos_token_id": [200002, 199999]},
        **{"bos_token_id": 199998, "pad_token_id": 199999},
        "decoder": {
            "session_options": {
                "log_id": "onnxruntime-genai",
                "intra_op_num_threads": 2,
                "provider_options": [{"cuda": {"enable_cuda_graph": "0"}}, {"DML": {}}],
            },
            "filename": "model.onnx",
            **{"head_size": 64, "hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 4},
            "num_key_value_heads": 2,
            "sliding_window": {"window_size": 128, "slide_inputs": False, "layers": [0, 2]},
            "inputs": {"input_ids": "input_ids", "past_key_names": "past_key_values.%d.key"},
            "outputs": {"logits": "logits", "present_key_names": "present.%d.key"},
        },
    },
    "search": {"temperature": 0.5, "top_k": 5, "past_present_share_buffer": True, "chunk_size": 64, "max_length": 9},
}
# What may arrive there, written down a second time; "*" is an entry of a list.
REACHES = {
    *(f"model.{key}" for key in ("type", "context_length", "vocab_size", "bos_token_id", "pad_token_id")),
    *("model.eos_token_id", "model.eos_token_id.*"),
    *(
        f"model.decoder.{key}"
        for key in (
            *("filename", "head_size", "hidden_size", "num_attention_heads", "num_hidden_layers"),
            *("num_key_value_heads", "sliding_window.layers.*"),
            *(f"sliding_window.{key}" for key in ("window_size", "pad_value", "alignment", "cache_slack")),
            *(f"sliding_window.{key}" for key in ("slide_key_value_cache", "slide_inputs")),
            *(f"inputs.{key}" for key in ("input_ids", "inputs_embeds", "attention_mask", "position_ids")),
            *(f"inputs.{key}" for key in ("past_key_names", "past_value_names", "past_names")),
            *(f"inputs.{key}" for key in ("past_sequence_length", "past_key_values_length")),
            *(f"inputs.{key}" for key in ("current_sequence_length", "total_sequence_length")),
            *(f"outputs.{key}" for key in ("logits", "present_key_names", "present_value_names", "present_names")),
        )
    ),
    *(
        f"model.decoder.session_options.{key}"
        for key in (
            *("log_id", "log_severity_level", "log_verbosity_level", "intra_op_num_threads", "inter_op_num_threads"),
            *("enable_cpu_mem_arena", "enable_mem_pattern", "graph_optimization_level", "ep.cuda.fpa_intb_gemm"),
            *("optimization.disable_specified_optimizers", "session.disable_prepacking", WEIGHTS),
            *("session.inter_op.allow_spinning", "session.intra_op.allow_spinning"),
            *("session.qdq_matmulnbits_accuracy_level", "session.set_denormal_as_zero"),
            "session.use_device_allocator_for_initializers",
            *(
                f"provider_options.*.{key}"
                for key in (
                    *("dml.enable_graph_capture", "cuda.enable_cuda_graph", "cuda.use_tf32"),
                    *("cuda.enable_skip_layer_norm_strict_mode", "webgpu.enableGraphCapture"),
                    *("webgpu.validationMode", "webgpu.multiRotaryCacheConcatOffset"),
                )
            ),
        )
    ),
    *("search.past_present_share_buffer", "search.chunk_size"),
}
TEXT = re.compile(r"[\w .:;/-]*(%d)?[\w .:;/-]*", re.ASCII)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{at}.*")
    else:
        yield at, value


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


NAMES = [
    *("custom_ops_library", "enable_profiling", "pipeline", "run_options", "filename", "log_id", "type"),
    *("ep.context_file_path", "session.load_model_format", WEIGHTS, "provider_options", "qnn", "cuda", "CPU"),
    *("session_options", "past_names", "layers", "chunk_size", "min_length", "eos_token_id", "encoder"),
    *("gpu_external_alloc", "enable_cuda_graph", "dawnProcTable", "inputs", "outputs", "decoder", "model"),
]
TEXTS = ["1", "0", "x.so", "/etc/x", "%d", "%n", "..", "past.%d.key", "a b", "left", "disabled"]
KEYS = st.one_of(
    st.sampled_from(NAMES),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from(TEXTS),
        st.text(max_size=6),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_an_accepted_configuration_has_only_allowed_keys(data: st.DataObject) -> None:
    config = copy.deepcopy(BASE)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.sampled_from(list(objects(config))))
        key = data.draw(st.one_of(st.sampled_from(sorted(at)), KEYS) if at else KEYS)
        if data.draw(st.integers(0, 4)) == 0:
            at.pop(key, None)
        else:
            at[key] = data.draw(VALUES)
    check(config)


def test_an_allowed_name_is_not_accepted_elsewhere() -> None:
    """Tries every name in every object and every value of every key, which random tests rarely combine."""
    for place, found in enumerate(objects(BASE)):
        for name, value in itertools.product({*NAMES, *found}, [*TEXTS, 1, 0.5, True, None, [], {}, [{}]]):
            config = copy.deepcopy(BASE)
            list(objects(config))[place][name] = value
            check(config)


def check(config: dict[str, Any]) -> None:
    """If a configuration is accepted, the new one has only allowed keys."""
    if find_problems(config) or not isinstance(config.get("model", {}).get("decoder"), dict):
        return
    composed = compose(config, "weights")
    for path, value in leaves(composed):
        assert path in REACHES, path
        assert isinstance(value, int | str), path  # no float: none says anything but how to sample
        if isinstance(value, str):
            assert TEXT.fullmatch(value), value
            assert "%" not in value or path.endswith("_names")
    decoder = composed["model"]["decoder"]
    assert decoder["filename"] == "model.onnx"
    assert decoder["session_options"][WEIGHTS] == "weights"
    assert "\\u" not in json.dumps(composed, ensure_ascii=False)  # genai reads none


@given(VALUES)
def test_any_value_is_handled(value: Any) -> None:
    for config in ({"model": value}, {"search": value}, {"model": {"decoder": value}}):
        assert isinstance(find_problems(config), list)


def test_the_base_configuration_is_accepted() -> None:
    assert find_problems(BASE) == []
    composed = compose(BASE, "w")
    assert composed["search"] == {"past_present_share_buffer": True, "chunk_size": 64}
    options = composed["model"]["decoder"]["session_options"]["provider_options"]
    assert options == [{"cuda": {"enable_cuda_graph": "0"}}, {"dml": {}}]


@pytest.mark.parametrize(
    ("key", "does"),
    [
        ("custom_ops_library", "load that library and run its code"),
        ("enable_profiling", "write files there"),
        ("ep.context_file_path", "write files there"),
        ("session.model_external_initializers_file_folder_path", "use files there"),
        ("harmless", ""),
    ],
)
def test_the_effect_in_other_programs_is_described(key: str, does: str) -> None:
    config = copy.deepcopy(BASE)
    config["model"]["decoder"]["session_options"][key] = "x"
    [problem] = find_problems(config)
    assert (problem.key, problem.effect) == (f"model.decoder.session_options.{key}", does)


def test_every_problem_is_found() -> None:
    config = copy.deepcopy(BASE)
    config["model"]["decoder"]["session_options"] |= {"custom_ops_library": "x", "enable_profiling": "y"}
    config["model"]["vision"] = {}
    config["extra"] = 1
    assert len(find_problems(config)) == 4
