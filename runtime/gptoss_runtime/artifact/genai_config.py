"""What of an artifact's genai_config.json reaches onnxruntime-genai: keys and values from a list, in a file of our own.

onnxruntime-genai acts on what such a file says: it loads libraries that it names, writes files, calls addresses, and
uses names as format strings. So the file itself is never given to it. Known keys with values in their ranges are copied
into a configuration that is written here; of them, those that say how to sample stay behind, because tokens are chosen
elsewhere. Any other key is refused by its name. Knows genai's keys; knows nothing of folders and engines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

GRAPH = "model.onnx"  # what the graph is called in the configuration that is written; its bytes are given apart
WEIGHTS = "session.model_external_initializers_file_folder_path"
MOST_POSITIONS = 2**27
MOST_TOKENS = 2**24
_MOST_LAYERS = 2**12
_ID = 2**31 - 1


class Value(NamedTuple):
    """Which values a key may have; ``passed`` is False for those that are checked and left out."""

    accepts: Callable[[Any], bool]
    expected: str
    passed: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a configuration that is refused.

    Attributes:
        key: where, such as "model.decoder.session_options.custom_ops_library".
        why: what is wrong with it.
        elsewhere: what onnxruntime-genai, and what is built on it, would do with it; "" if nothing special.
    """

    key: str
    why: str
    elsewhere: str = ""


def integer(low: int, high: int, *, passed: bool = True) -> Value:
    """A whole number."""
    return Value(lambda value: type(value) is int and low <= value <= high, f"a whole number, {low} to {high}", passed)


def number(low: float, high: float) -> Value:
    """A number that says how to sample: it is left out."""
    return Value(lambda value: type(value) in (int, float) and low <= value <= high, f"{low} to {high}", passed=False)


def boolean(*, passed: bool = True) -> Value:
    """true or false."""
    return Value(lambda value: type(value) is bool, "true or false", passed)


def text(pattern: str, expected: str, *, passed: bool = True) -> Value:
    """A text of a form."""
    form = re.compile(pattern, re.ASCII)
    return Value(lambda value: isinstance(value, str) and form.fullmatch(value) is not None, expected, passed)


def _ids(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= 100 and all(type(one) is int and 0 <= one <= _ID for one in values)


def _layers(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < _MOST_LAYERS for one in value)


_FLAG = text("[01]", '"0" or "1"')
_NAME = text(r"[\w./:-]{1,200}", "a plain name")
# genai makes names of it with snprintf, in 64 bytes: a second "%" would read or write memory
_NAMES = text(r"(?=.{1,56}$)[\w./:-]*%d[\w./:-]*", 'a short name with one "%d"')
_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_sequence_length")
_LENGTHS = ("past_key_values_length", "current_sequence_length", "total_sequence_length")

PROVIDER_OPTIONS: Mapping[str, Mapping[str, Value]] = {
    "cpu": {},
    "dml": {"enable_graph_capture": _FLAG},
    "cuda": {"enable_cuda_graph": _FLAG, "enable_skip_layer_norm_strict_mode": _FLAG, "use_tf32": _FLAG},
    "webgpu": {
        "enableGraphCapture": _FLAG,
        "validationMode": text("disabled|wgpuOnly|basic|full", "disabled, wgpuOnly, basic or full"),
        "multiRotaryCacheConcatOffset": text("[0-9]{1,9}", "a number"),
    },
}
SESSION_OPTIONS: Mapping[str, Value] = {
    "log_id": text(r"[\w .:-]{0,100}", "a short name"),
    "log_severity_level": integer(0, 4),
    "log_verbosity_level": integer(0, 4),
    "intra_op_num_threads": integer(0, 256),
    "inter_op_num_threads": integer(0, 256),
    "enable_cpu_mem_arena": boolean(),
    "enable_mem_pattern": boolean(),
    "graph_optimization_level": text("ORT_(DISABLE_ALL|ENABLE_(BASIC|EXTENDED|ALL))", "a level of onnxruntime's"),
    "ep.cuda.fpa_intb_gemm": _FLAG,
    "optimization.disable_specified_optimizers": text(r"[\w;]{0,500}", "names"),
    "session.disable_prepacking": _FLAG,
    "session.inter_op.allow_spinning": _FLAG,
    "session.intra_op.allow_spinning": _FLAG,
    "session.qdq_matmulnbits_accuracy_level": text("[0-4]", '"0" to "4"'),
    "session.set_denormal_as_zero": _FLAG,
    "session.use_device_allocator_for_initializers": _FLAG,
}
SEARCH: Mapping[str, Value] = {
    "past_present_share_buffer": boolean(),
    "chunk_size": integer(0, MOST_POSITIONS),
    "do_sample": boolean(passed=False),
    "early_stopping": boolean(passed=False),
    **{name: integer(0, _ID, passed=False) for name in ("max_length", "min_length", "no_repeat_ngram_size", "top_k")},
    **{name: integer(1, _ID, passed=False) for name in ("batch_size", "num_beams", "num_return_sequences")},
    "random_seed": integer(-1, _ID, passed=False),
    **{name: number(0, 1e6) for name in ("diversity_penalty", "repetition_penalty", "temperature", "top_p")},
    "length_penalty": number(-1e6, 1e6),
}
SLIDING_WINDOW: Mapping[str, Value] = {
    "window_size": integer(1, MOST_POSITIONS),
    "pad_value": integer(-_ID, _ID),
    "alignment": text("left|right", "left or right"),
    "slide_key_value_cache": boolean(),
    "slide_inputs": boolean(),
    "layers": Value(_layers, "numbers of layers"),
    "cache_slack": integer(0, MOST_POSITIONS),
}
Table = Mapping[str, "Value | Mapping[str, Any]"]
DECODER: Table = {
    "session_options": SESSION_OPTIONS,
    "filename": Value(lambda value: isinstance(value, str), "a file's name", passed=False),
    "head_size": integer(1, 2**16),
    "hidden_size": integer(1, 2**20),
    "num_attention_heads": integer(1, 2**16),
    "num_hidden_layers": integer(1, _MOST_LAYERS),
    "num_key_value_heads": integer(1, 2**16),
    "sliding_window": SLIDING_WINDOW,
    "inputs": {
        **dict.fromkeys((*_INPUTS, *_LENGTHS), _NAME),
        **dict.fromkeys(("past_key_names", "past_value_names", "past_names"), _NAMES),
    },
    "outputs": {
        "logits": _NAME,
        **dict.fromkeys(("present_key_names", "present_value_names", "present_names"), _NAMES),
    },
}
MODEL: Table = {
    "type": text("[a-z0-9_]{1,40}", "a type of model"),
    "context_length": integer(1, MOST_POSITIONS),
    "vocab_size": integer(1, MOST_TOKENS),
    "eos_token_id": Value(_ids, "an id or a list of ids"),
    "bos_token_id": integer(0, _ID),
    "pad_token_id": integer(0, _ID),
    **dict.fromkeys(("bot_token_id", "eot_token_id", "bor_token_id", "eor_token_id"), integer(0, _ID, passed=False)),
    "decoder": DECODER,
}
CONFIG: Table = {"model": MODEL, "search": SEARCH}

_ELSEWHERE = (
    (re.compile(r"custom_ops_library|.*librar.*|backend_path|.*_lib_path", re.I), "load that library and run its code"),
    (
        re.compile(r"gpu_external_.*|.*stream|.*proctable|webgpu(device|instance)", re.I),
        "use that number as an address",
    ),
    (re.compile(r"enable_profiling|.*(dump|collect).*|ep\.context_.*|.*optimized_model.*", re.I), "write files there"),
    (re.compile(r"pipeline|encoder|vision|speech|embedding|joiner|vad|draft", re.I), "load more models"),
    (re.compile(r".*(path|folder|file|dir)", re.I), "use files there"),
)


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """Everything in a configuration that is refused; empty if nothing is.

    Args:
        config: genai_config.json, read strictly.
    """
    return list(_problems(CONFIG, config, ""))


def compose(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The configuration that onnxruntime-genai is given: of another one, what the tables list.

    Args:
        config: one without problems.
        weights: the folder that the graph's external data lies in, as genai is to be told it.
    """
    composed = _composed(CONFIG, config)
    decoder = composed["model"]["decoder"]
    decoder["filename"] = GRAPH
    decoder["session_options"] = {**decoder.get("session_options", {}), WEIGHTS: weights}
    decoder["session_options"].setdefault("provider_options", [])
    return composed


def _problems(table: Table, value: object, at: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(at, f"is {_shown(value)}, not an object")
        return
    for key, inner in value.items():
        path = f"{at}.{key[:80]}" if at else key[:80]
        rule = table.get(key)
        if table is SESSION_OPTIONS and key == "provider_options":
            yield from _provider_problems(inner, path)
        elif rule is None:
            yield Problem(path, "is not among the keys that are harmless", _elsewhere(key))
        elif not isinstance(rule, Value):
            yield from _problems(rule, inner, path)
        elif not rule.accepts(inner):
            yield Problem(path, f"is {_shown(inner)}, not {rule.expected}")


def _provider_problems(value: object, at: str) -> Iterator[Problem]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        yield Problem(at, f"is {_shown(value)}, not a list of objects")
        return
    named = [(name, options) for entry in value for name, options in entry.items()]
    for name, options in named:
        table = PROVIDER_OPTIONS.get(_provider(name))
        if table is None:
            yield Problem(f"{at}.{name[:80]}", "is no execution provider that gptoss runs", "load that provider")
        else:
            yield from _problems(table, options, f"{at}.{name}")
    if len({_provider(name) for name, _ in named}) < len(named):
        yield Problem(at, "names a provider twice")


def _composed(table: Table, value: Mapping[str, Any]) -> dict[str, Any]:
    composed: dict[str, Any] = {}
    for key, rule in table.items():
        if key not in value:
            continue
        if not isinstance(rule, Value):
            composed[key] = _composed(rule, value[key])
        elif rule.passed:
            composed[key] = value[key]
    if table is SESSION_OPTIONS:
        composed["provider_options"] = [
            {_provider(name): _composed(PROVIDER_OPTIONS[_provider(name)], options)}
            for entry in value.get("provider_options", [])
            for name, options in entry.items()
        ]
    return composed


def _provider(name: str) -> str:
    """genai's name of a provider, which it takes in any case, and with or without an ending."""
    return name.lower().removesuffix("executionprovider")


def _elsewhere(key: str) -> str:
    return next((what for form, what in _ELSEWHERE if form.fullmatch(key)), "")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
