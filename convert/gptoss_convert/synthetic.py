"""Writes checkpoints for measurements and tests, in the published layout.

``write_checkpoint`` writes random weights of any dimensions, with moderate activations or with those of real
checkpoints. ``amplify`` rewrites a checkpoint with larger activations and mathematically the same logits (see
activation_profile.py). At most one tensor is in memory.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gptoss_convert.activation_profile import Array, Profile, Shifts
from gptoss_convert.checkpoint import DTYPES, Checkpoint, expected_tensors
from gptoss_convert.config import GptOssConfig
from gptoss_convert.nano.folder import write_tokenizer
from gptoss_runtime.harmony_tokens import ENDOFTEXT, RETURN, VOCAB_SIZE

# Dimensions from the config.json of openai/gpt-oss-20b.
GPT_OSS_20B: Mapping[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": RETURN,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "pad_token_id": ENDOFTEXT,
    "quantization_config": {
        "modules_to_not_convert": [
            *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"),
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB_SIZE,
}


def write_checkpoint(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    shards: int = 1,
    mxfp4: bool = True,
    hollow: bool = False,
    profile: Profile | None = None,
) -> Path:
    """Writes config.json and ``shards`` safetensors files (with an index if there are several).

    Args:
        folder: created if missing; existing files of these names are replaced.
        changes: differences from gpt-oss-20b's config.json. ``layer_types`` alternate unless given.
        seed: of the random weights.
        shards: number of safetensors files.
        mxfp4: store experts as blocks and scales, as published, and not as bfloat16.
        hollow: write sparse files instead of weights, which read as zeros.
        profile: the size of activations; ``None``: a few units everywhere.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = {**GPT_OSS_20B, **(changes or {})}
    kinds = ("sliding_attention", "full_attention")
    raw.setdefault("layer_types", [kinds[i % 2] for i in range(raw["num_hidden_layers"])])
    if not mxfp4:
        del raw["quantization_config"]
    (folder / "config.json").write_text(json.dumps(raw, indent=2), "utf-8")
    entries = [
        (name, shape, "U8" if dtypes == ("U8",) else "BF16")
        for name, shape, dtypes in expected_tensors(GptOssConfig.read(folder), mxfp4=mxfp4)
    ]
    rng, weight_map = np.random.default_rng(seed), {}

    def draw(name: str, shape: tuple[int, ...]) -> Iterator[Array]:
        adjust = None if profile is None else profile.adjustment(name, raw["num_hidden_layers"])
        if adjust is None:
            yield from _random(name, shape, rng)
            return
        whole = np.concatenate(list(_random(name, shape, rng))).reshape(shape)
        floats = whole if whole.dtype == np.uint8 else whole.astype(np.float32)
        yield adjust(floats).astype(whole.dtype)

    per_shard = math.ceil(len(entries) / shards)
    for number in range(shards):
        mine = entries[number * per_shard : (number + 1) * per_shard]
        name = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        weight_map.update({entry[0]: name for entry in mine})
        _write_shard(folder / name, mine, None if hollow else draw)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return folder


def amplify(source: Path, folder: Path, shifts: Shifts) -> Path:
    """Writes a copy of a checkpoint with larger activations and mathematically the same logits.

    Args:
        source: a checkpoint folder; its other files are copied.
        folder: created; must not exist.
        shifts: the powers of two to apply.

    Returns:
        The folder.

    Raises:
        CheckpointError: the source cannot be read, or a weight leaves the range of its type.
    """
    checkpoint = Checkpoint.open(source)
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file not in checkpoint.files and file.name != "model.safetensors.index.json":
            shutil.copyfile(file, folder / file.name)
    raw = json.loads((source / "config.json").read_text("utf-8"))
    changed = raw | shifts.config(checkpoint.config)
    (folder / "config.json").write_text(json.dumps(changed, indent=2), "utf-8")
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries = []
    for stored in checkpoint.tensors.values():  # for the header; computed again when it is written
        values = shifts.apply(stored.name, stored.array())
        entries.append((stored.name, values.shape, names[values.dtype]))
    _write_shard(
        folder / "model.safetensors", entries, lambda name, _: iter([shifts.apply(name, checkpoint.array(name))])
    )
    return folder


def write_convertible(
    folder: Path, changes: Mapping[str, Any] | None = None, *, shards: int = 1, profile: Profile | None = None
) -> Path:
    """Writes a checkpoint with nano's tokenizer, so that it can be converted; keeps one that is already there.

    Returns:
        The folder.
    """
    if not (folder / "chat_template.jinja").exists():  # written last
        write_checkpoint(folder, changes, shards=shards, profile=profile)
        write_tokenizer(folder)
    return folder


def _write_shard(
    file: Path,
    entries: list[tuple[str, tuple[int, ...], str]],
    draw: Callable[[str, tuple[int, ...]], Iterator[Array]] | None,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, dtype in entries:
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        if draw is None:
            stream.truncate(stream.tell() + end)
            return
        for name, shape, _ in entries:
            for chunk in draw(name, shape):
                stream.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[Array]:
    """Draws random values of plausible size, a few million at a time."""
    size, step = math.prod(shape), 1 << 22
    for start in range(0, size, step):
        count = min(step, size - start)
        if name.endswith("_blocks"):
            yield rng.integers(0, 256, count, np.uint8)
        elif name.endswith("_scales"):  # |code| is 2.6 on average, so rows have about unit gain
            middle = 127 - round(math.log2(2.6 * math.sqrt(32 * shape[-1])))
            yield rng.integers(middle - 1, middle + 1, count, np.uint8, endpoint=True)
        else:
            yield (rng.standard_normal(count, np.float32) * _spread(name, shape) + _centre(name)).astype(
                ml_dtypes.bfloat16
            )


def _centre(name: str) -> np.float32:
    return np.float32(1.0 if "norm" in name else 0.0)


def _spread(name: str, shape: tuple[int, ...]) -> np.float32:
    if name.endswith("sinks"):
        return np.float32(1.0)
    if name.endswith("bias") or "norm" in name:
        return np.float32(0.1)
    if "embed" in name:
        return np.float32(1.0)
    inputs = shape[1] if "experts" in name else shape[-1]  # float experts are stored [E, in, out]
    return np.float32(1 / math.sqrt(inputs))
