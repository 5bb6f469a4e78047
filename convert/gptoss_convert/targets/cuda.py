"""CUDA: NVIDIA's cards, experts in int4 for all of them, or in the checkpoint's own MXFP4 where its kernel runs.

docs/conversion.md says which cards run which experts. Nothing here has run on a card; it also says what was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import onnx_ir as ir

from gptoss_convert.config import GptOssConfig
from gptoss_convert.graph import attention_gqa, moe_qmoe, moe_qmoe_cuda
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.router import router_logits_float32
from gptoss_convert.schemes import Group, SchemeType
from gptoss_convert.targets.base import Target, Workspace, compose_from

_EXPERTS: dict[SchemeType, Layer] = {
    "int4": moe_qmoe_cuda.moe_integer,
    "mxfp4": moe_qmoe_cuda.moe_mxfp4,
    "int8": moe_qmoe_cuda.moe_integer,
}
# The same computation, router included, with codes in the order of the CPU's kernels.
_INTEGER_ON_CPU = partial(moe_qmoe.moe_integer, router=router_logits_float32)
_ON_CPU: dict[SchemeType, Layer] = {
    "int4": _INTEGER_ON_CPU,
    "mxfp4": partial(moe_qmoe.moe_mxfp4, router=router_logits_float32),
    "int8": _INTEGER_ON_CPU,
}
PRESETS: Mapping[str, Mapping[Group, Any]] = {
    "balanced": {"embedding": "int8", "attention": "int8", "router": "float32", "experts": "int4", "lm_head": "int8"},
    "smallest": {"embedding": "int8", "attention": "int4", "router": "float32", "experts": "int4", "lm_head": "int4"},
    "lossless": {
        **{"embedding": "float16", "attention": "float16", "router": "float32"},
        **{"experts": "mxfp4", "lm_head": "float16"},
    },
}
_PIECE = 1024  # tokens of a prompt that the runtime computes at a time
_ROWS = 32768  # rows of a large weight that MatMulNBits dequantises at a time, if its fast kernels do not apply


def workspace(config: GptOssConfig, itemsize: float) -> Workspace:
    """Activations of one piece of a prompt, derived from onnxruntime's source, not measured."""
    expanded = config.num_experts_per_tok * (3 * config.intermediate_size + 2 * config.hidden_size)
    activations = _PIECE * (expanded + 4 * config.hidden_size)
    dequantised = min(_ROWS, config.vocab_size) * config.hidden_size
    return Workspace(int((activations + dequantised + 2 * config.vocab_size) * itemsize))


def target(dtype: ir.DataType = ir.DataType.FLOAT16) -> Target:
    """The CUDA target.

    Args:
        dtype: float type of activations and caches; float32 is for measuring, as CUDA's QMoE does not take it.
    """
    return Target(
        name="cuda",
        summary="experts in int4, or in native MXFP4, for NVIDIA's cards",
        dtype=dtype,
        opset=21,
        ir_version=10,
        presets=PRESETS,
        compose=compose_from(attention_gqa.prepare, _EXPERTS),
        requires={"onnxruntime-gpu": ">=1.31", "onnxruntime-genai-cuda": ">=0.18"},
        # As genai's own builder writes it, without graph capture, which has to be tried on each card.
        provider_options=({"cuda": {"enable_cuda_graph": "0"}},),
        workspace=workspace,
        runs_on_cpu=False,
        on_cpu=compose_from(attention_gqa.prepare, _ON_CPU),
    )


TARGET = target()
