"""DirectML: gpt-oss from operators that DirectML registers, every node on the GPU.

DirectML has no mixture-of-experts kernel and its fused attention knows neither sinks nor windows, so both are composed
(graph/moe_composed.py, graph/attention_primitive.py). Why these designs: docs/directml.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import onnx_ir as ir

from gptoss_convert.config import GptOssConfig
from gptoss_convert.graph import attention_primitive, moe_composed
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.embedding import embedding_by_rows
from gptoss_convert.graph.head import heads_in_pieces
from gptoss_convert.graph.pieces import Limit
from gptoss_convert.schemes import Group, SchemeType
from gptoss_convert.targets.base import Target, Workspace, composed

# A dequantised weight of the 20b's experts would take 1 GB, its lm_head another.
LIMIT = Limit(128 << 20)
# Tokens of a prompt computed at a time: scores take memory by it, and these are enough to keep the experts computing.
PIECE = 128
# Every way of composing the experts; "split" is the target's, the others are there to be measured against it.
DESIGNS: Mapping[str, Callable[[Limit], Layer]] = {
    "split": moe_composed.moe_split,
    "slots": lambda _: moe_composed.moe_slots,
    "dense": lambda _: moe_composed.moe_dense,
}
PRESETS: Mapping[str, Mapping[Group, Any]] = {
    "balanced": {"embedding": "int8", "attention": "int8", "router": "float32", "experts": "int4", "lm_head": "int8"},
    "smallest": {"embedding": "int8", "attention": "int4", "router": "float32", "experts": "int4", "lm_head": "int4"},
    # int8 holds MXFP4's values exactly: for cards of 24 GB, and to measure what int4 costs
    "best": {
        **{"embedding": "float16", "attention": "float16", "router": "float32"},
        **{"experts": "int8", "lm_head": "float16"},
    },
}


def workspace(config: GptOssConfig, itemsize: float, limit: Limit) -> Workspace:
    """Activations of one piece of a prompt, none of them shared between the stages that could: an upper bound.

    The factors were found by counting in the lab; tests/directml/test_memory.py holds the bound against it.
    """
    expert = 2 * config.intermediate_size * config.hidden_size * itemsize
    together = max(1, min(config.num_local_experts, int(limit.nbytes // expert)))
    copies = together * expert * (1 + 0.5625 / itemsize)  # dequantised, and gathered codes and scales
    hidden = 6 * PIECE * together * 2 * config.intermediate_size * 4  # float32 between the experts' two products
    decoding = config.num_experts_per_tok * expert * 0.5625 / itemsize * 1.5  # the slots' copies of both projections
    head = min(limit.nbytes, config.vocab_size * config.hidden_size * itemsize) + 2 * config.vocab_size * itemsize
    group = config.num_attention_heads // config.num_key_value_heads
    scores = 3 * config.num_attention_heads * PIECE * itemsize
    masks = PIECE * (2 * group + 5 * 4)
    return Workspace(int(max(copies, head) + hidden + decoding), int(scores + masks))


def target(design: str = "split", dtype: ir.DataType = ir.DataType.FLOAT16, limit: Limit = LIMIT) -> Target:
    """The DirectML target with its experts composed one way or another.

    Args:
        design: one of ``DESIGNS``.
        dtype: float type of activations and caches; float32 is for measuring.
        limit: of what one product may dequantise.
    """
    moe = DESIGNS[design](limit)
    experts: dict[SchemeType, Layer] = {"int4": moe, "int8": moe}
    on_cpu: dict[SchemeType, Layer] = dict.fromkeys(experts, moe_composed.moe_grouped)
    return Target(
        name="directml",
        summary="experts in int4, every node on DirectML: NVIDIA, AMD and Intel GPUs on Windows",
        dtype=dtype,
        opset=21,  # the last whose operators DirectML registers
        ir_version=10,
        presets=PRESETS,
        compose=composed(attention_primitive.prepare, experts, embedding_by_rows, heads_in_pieces(limit)),
        requires={"onnxruntime-directml": ">=1.24.4", "onnxruntime-genai-directml": ">=0.13.1"},
        provider_options=({"dml": {}},),
        inputs=("position_ids",),
        search={"chunk_size": PIECE},
        workspace=partial(workspace, limit=limit),
        on_cpu=composed(attention_primitive.prepare, on_cpu, embedding_by_rows, heads_in_pieces(limit)),
    )


TARGET = target()
