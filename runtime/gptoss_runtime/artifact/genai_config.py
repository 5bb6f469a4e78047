"""Filters an artifact's genai_config.json: onnxruntime-genai gets a new configuration made of allowed keys only.

onnxruntime-genai acts on such a file: it loads the libraries that the file names, writes files, calls addresses, and
uses names as format strings. So it never reads the artifact's file. Allowed keys with values in their ranges are copied
into a new configuration, except the sampling keys, because this project samples outside genai. Any other key is an
error that names it. Knows genai's keys; knows nothing of folders and engines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

GRAPH = "model.onnx"  # the graph's name in the new configuration; its bytes are passed to genai separately
WEIGHTS = "session.model_external_initializers_file_folder_path"
MAX_POSITIONS = 2**27
MAX_TOKENS = 2**24
_MAX_LAYERS = 2**12
_MAX_INT = 2**31 - 1


class Rule(NamedTuple):
    """Which values a key may have.

    Attributes:
        accepts: whether a value is allowed.
        expected: the allowed values in words, for error messages.
        copied: False for keys that are checked but not copied into the new configuration.
    """

    accepts: Callable[[Any], bool]
    expected: str
    copied: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """A key or a value that is not allowed.

    Attributes:
        key: its path, such as "model.decoder.session_options.custom_ops_library".
        reason: what is wrong with it.
        effect: what onnxruntime-genai and programs built on it would do with it; "" if nothing dangerous is known.
    """

    key: str
    reason: str
    effect: str = ""


def integer(low: int, high: int, *, copied: bool = True) -> Rule:
    """Allows integers from ``low`` to ``high``."""
    return Rule(lambda value: type(value) is int and low <= value <= high, f"an integer from {low} to {high}", copied)


def sampling_number(low: float, high: float) -> Rule:
    """Allows numbers from ``low`` to ``high``; not copied, because they are sampling options."""
    return Rule(lambda value: type(value) in (int, float) and low <= value <= high, f"{low} to {high}", copied=False)


def boolean(*, copied: bool = True) -> Rule:
    """Allows true and false."""
    return Rule(lambda value: type(value) is bool, "true or false", copied)


def text(pattern: str, expected: str, *, copied: bool = True) -> Rule:
    """Allows strings that match a regular expression in full."""
    form = re.compile(pattern, re.ASCII)
    return Rule(lambda value: isinstance(value, str) and form.fullmatch(value) is not None, expected, copied)


def _is_token_ids(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= 100 and all(type(one) is int and 0 <= one <= _MAX_INT for one in values)


def _is_layer_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < _MAX_LAYERS for one in value)


_FLAG = text("[01]", '"0" or "1"')
_NAME = text(r"[\w./:-]{1,200}", "a plain name")
# genai passes it to snprintf as the format, with a 64-byte buffer: a second "%" would read or write other memory
_NAME_FORMAT = text(r"(?=.{1,56}$)[\w./:-]*%d[\w./:-]*", 'a short name with one "%d"')
_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_sequence_length")
_LENGTHS = ("past_key_values_length", "current_sequence_length", "total_sequence_length")

PROVIDER_OPTIONS: Mapping[str, Mapping[str, Rule]] = {
    "cpu": {},
    "dml": {"enable_graph_capture": _FLAG},
    "cuda": {"enable_cuda_graph": _FLAG, "enable_skip_layer_norm_strict_mode": _FLAG, "use_tf32": _FLAG},
    "webgpu": {
        "enableGraphCapture": _FLAG,
        "validationMode": text("disabled|wgpuOnly|basic|full", "disabled, wgpuOnly, basic or full"),
        "multiRotaryCacheConcatOffset": text("[0-9]{1,9}", "a number"),
    },
}
SESSION_OPTIONS: Mapping[str, Rule] = {
    "log_id": text(r"[\w .:-]{0,100}", "a short name"),
    "log_severity_level": integer(0, 4),
    "log_verbosity_level": integer(0, 4),
    "intra_op_num_threads": integer(0, 256),
    "inter_op_num_threads": integer(0, 256),
    "enable_cpu_mem_arena": boolean(),
    "enable_mem_pattern": boolean(),
    "graph_optimization_level": text("ORT_(DISABLE_ALL|ENABLE_(BASIC|EXTENDED|ALL))", "an onnxruntime level"),
    "ep.cuda.fpa_intb_gemm": _FLAG,
    "optimization.disable_specified_optimizers": text(r"[\w;]{0,500}", "names of optimizers, separated by ';'"),
    "session.disable_prepacking": _FLAG,
    "session.inter_op.allow_spinning": _FLAG,
    "session.intra_op.allow_spinning": _FLAG,
    "session.qdq_matmulnbits_accuracy_level": text("[0-4]", '"0" to "4"'),
    "session.set_denormal_as_zero": _FLAG,
    "session.use_device_allocator_for_initializers": _FLAG,
}
SEARCH: Mapping[str, Rule] = {
    "past_present_share_buffer": boolean(),
    "chunk_size": integer(0, MAX_POSITIONS),
    "do_sample": boolean(copied=False),
    "early_stopping": boolean(copied=False),
    **dict.fromkeys(("max_length", "min_length", "no_repeat_ngram_size", "top_k"), integer(0, _MAX_INT, copied=False)),
    **dict.fromkeys(("batch_size", "num_beams", "num_return_sequences"), integer(1, _MAX_INT, copied=False)),
    "random_seed": integer(-1, _MAX_INT, copied=False),
    **{name: sampling_number(0, 1e6) for name in ("diversity_penalty", "repetition_penalty", "temperature", "top_p")},
    "length_penalty": sampling_number(-1e6, 1e6),
}
SLIDING_WINDOW: Mapping[str, Rule] = {
    "window_size": integer(1, MAX_POSITIONS),
    "pad_value": integer(-_MAX_INT, _MAX_INT),
    "alignment": text("left|right", "left or right"),
    "slide_key_value_cache": boolean(),
    "slide_inputs": boolean(),
    "layers": Rule(_is_layer_numbers, "a list of layer numbers"),
    "cache_slack": integer(0, MAX_POSITIONS),
}
Table = Mapping[str, "Rule | Mapping[str, Any]"]
DECODER: Table = {
    "session_options": SESSION_OPTIONS,
    "filename": Rule(lambda value: isinstance(value, str), "a file name", copied=False),
    "head_size": integer(1, 2**16),
    "hidden_size": integer(1, 2**20),
    "num_attention_heads": integer(1, 2**16),
    "num_hidden_layers": integer(1, _MAX_LAYERS),
    "num_key_value_heads": integer(1, 2**16),
    "sliding_window": SLIDING_WINDOW,
    "inputs": {
        **dict.fromkeys((*_INPUTS, *_LENGTHS), _NAME),
        **dict.fromkeys(("past_key_names", "past_value_names", "past_names"), _NAME_FORMAT),
    },
    "outputs": {
        "logits": _NAME,
        **dict.fromkeys(("present_key_names", "present_value_names", "present_names"), _NAME_FORMAT),
    },
}
MODEL: Table = {
    "type": text("[a-z0-9_]{1,40}", "a model type"),
    "context_length": integer(1, MAX_POSITIONS),
    "vocab_size": integer(1, MAX_TOKENS),
    "eos_token_id": Rule(_is_token_ids, "a token id or a list of token ids"),
    "bos_token_id": integer(0, _MAX_INT),
    "pad_token_id": integer(0, _MAX_INT),
    **{f"{name}_token_id": integer(0, _MAX_INT, copied=False) for name in ("bot", "eot", "bor", "eor")},
    "decoder": DECODER,
}
CONFIG: Table = {"model": MODEL, "search": SEARCH}

_EFFECTS = (
    (re.compile(r"custom_ops_library|.*librar.*|backend_path|.*_lib_path", re.I), "load that library and run its code"),
    (
        re.compile(r"gpu_external_.*|.*stream|.*proctable|webgpu(device|instance)", re.I),
        "use that number as an address",
    ),
    (re.compile(r"enable_profiling|.*(dump|collect).*|ep\.context_.*|.*optimized_model.*", re.I), "write files there"),
    (re.compile(r"pipeline|encoder|vision|speech|embedding|joiner|vad|draft", re.I), "load more models"),
    (re.compile(r".*(path|folder|file|dir)", re.I), "use files there"),
)


def find_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Returns every key and value of a configuration that is not allowed.

    Args:
        config: genai_config.json, as :mod:`strict_json` reads it.
    """
    return list(_iter_problems(CONFIG, config, ""))


def compose(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Returns the configuration for onnxruntime-genai: the keys of ``config`` that the tables list.

    Args:
        config: a configuration without problems.
        weights: the folder of the graph's external data, in the form that genai needs.
    """
    composed = _copy_allowed(CONFIG, config)
    decoder = composed["model"]["decoder"]
    decoder["filename"] = GRAPH
    decoder["session_options"] = {**decoder.get("session_options", {}), WEIGHTS: weights}
    decoder["session_options"].setdefault("provider_options", [])
    return composed


def _iter_problems(table: Table, value: object, at: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(at, f"is {_shorten(value)}, not an object")
        return
    for key, inner in value.items():
        path = f"{at}.{key[:80]}" if at else key[:80]
        rule = table.get(key)
        if table is SESSION_OPTIONS and key == "provider_options":
            yield from _iter_provider_problems(inner, path)
        elif rule is None:
            yield Problem(path, "is not an allowed key", _describe_effect(key))
        elif not isinstance(rule, Rule):
            yield from _iter_problems(rule, inner, path)
        elif not rule.accepts(inner):
            yield Problem(path, f"is {_shorten(inner)}, not {rule.expected}")


def _iter_provider_problems(value: object, at: str) -> Iterator[Problem]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        yield Problem(at, f"is {_shorten(value)}, not a list of objects")
        return
    named = [(name, options) for entry in value for name, options in entry.items()]
    for name, options in named:
        table = PROVIDER_OPTIONS.get(_normalize_provider(name))
        if table is None:
            yield Problem(f"{at}.{name[:80]}", "is not a supported execution provider", "load that provider")
        else:
            yield from _iter_problems(table, options, f"{at}.{name}")
    if len({_normalize_provider(name) for name, _ in named}) < len(named):
        yield Problem(at, "names a provider twice")


def _copy_allowed(table: Table, value: Mapping[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = {}
    for key, rule in table.items():
        if key not in value:
            continue
        if not isinstance(rule, Rule):
            copy[key] = _copy_allowed(rule, value[key])
        elif rule.copied:
            copy[key] = value[key]
    if table is SESSION_OPTIONS:
        copy["provider_options"] = [
            {_normalize_provider(name): _copy_allowed(PROVIDER_OPTIONS[_normalize_provider(name)], options)}
            for entry in value.get("provider_options", [])
            for name, options in entry.items()
        ]
    return copy


def _normalize_provider(name: str) -> str:
    """Returns genai's short name of a provider; genai ignores case and accepts the suffix "ExecutionProvider"."""
    return name.lower().removesuffix("executionprovider")


def _describe_effect(key: str) -> str:
    return next((effect for form, effect in _EFFECTS if form.fullmatch(key)), "")


def _shorten(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
