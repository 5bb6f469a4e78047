"""Runs onnxruntime-genai's model builder, the rival of our conversion, and measures its weights' errors.

Depends on the names of its initializers in onnxruntime-genai 0.18.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert import mxfp4
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.quantise import dequantise

Float32 = NDArray[np.float32]


def make_command(checkpoint: Path, out: Path, cache: Path, *, precision: str = "int4") -> list[str]:
    """The builder's command line for the CPU."""
    line = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", precision, "-e", "cpu"]
    return [*line, "-i", str(checkpoint), "-o", str(out), "-c", str(cache)]


def build(checkpoint: Path, out: Path) -> Path:
    """Runs the builder; returns the model's file."""
    out.mkdir()
    subprocess.run(make_command(checkpoint, out, out / "cache"), check=True, capture_output=True)
    return out / "model.onnx"


def weights_file(model: Path) -> Path:
    """The model's external data file."""
    return model.with_name(f"{model.name}.data")


def measure_snr(checkpoint: Checkpoint, model: Path) -> dict[str, float]:
    """SNR of the int4 weights relative to the checkpoint's values, in dB by tensor group."""
    stored = ir.load(model).graph.initializers
    noise: dict[str, list[float]] = {}
    for group, exact, packed, scales in _pairs(checkpoint):
        codes, steps = _array(stored[packed]), _array(stored[scales])
        block = exact.shape[-1] // steps.reshape(*exact.shape[:-1], -1).shape[-1]
        steps = steps.reshape(*exact.shape[:-1], -1)
        error = dequantise(codes.reshape(*exact.shape[:-1], -1), steps, bits=4, block=block) - exact
        sums = noise.setdefault(group, [0.0, 0.0])
        for at, values in enumerate((exact, error)):
            sums[at] += float(np.square(values, dtype=np.float64).sum())
    return {group: 10 * math.log10(signal / error) for group, (signal, error) in noise.items()}


def _pairs(checkpoint: Checkpoint) -> Iterator[tuple[str, Float32, str, str]]:
    """Yields group, exact values float32 [..., K], and the names of the builder's codes and scales."""
    for layer in range(checkpoint.config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.attn"
        yield "attention", *_dense(checkpoint, [f"{ours}.{one}_proj" for one in "qkv"], f"{theirs}.qkv_proj")
        yield "attention", *_dense(checkpoint, [f"{ours}.o_proj"], f"{theirs}.o_proj")
        for name in ("gate_up_proj", "down_proj"):
            ours, theirs = (f"model.layers.{layer}.{part}.experts.{name}" for part in ("mlp", "moe"))
            exact = mxfp4.decode(*(checkpoint.array(f"{ours}_{part}") for part in ("blocks", "scales")))
            yield "experts", exact, f"{theirs}.qweight", f"{theirs}.scales"
    yield "lm_head", *_dense(checkpoint, ["lm_head"], "lm_head")


def _dense(checkpoint: Checkpoint, names: Sequence[str], module: str) -> tuple[Float32, str, str]:
    exact = checkpoint.concatenate([f"{name}.weight" for name in names]).astype(np.float32)
    return exact, f"{module}.MatMul.weight_Q4", f"{module}.MatMul.weight_scales"


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()
