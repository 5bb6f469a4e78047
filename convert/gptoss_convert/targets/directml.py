"""DirectML: gpt-oss from operators that DirectML registers, every node on the GPU.

DirectML has no mixture-of-experts kernel, and its fused attention has neither sinks nor windows. Both are composed from
plain operators (graph/moe_composed.py, graph/attention_primitive.py). docs/directml.md explains the designs.
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
from gptoss_convert.targets.base import Target, Workspace, compose_from

# Without it a dequantised weight of the 20b's experts takes 1 GB, and lm_head as much.
LIMIT = Limit(128 << 20)
# Tokens of a prompt computed at a time. Scores take memory in proportion; this many keep the experts busy.
PIECE = 128
# Designs of the experts; the target uses "split", the others are for comparison.
DESIGNS: Mapping[str, Callable[[Limit], Layer]] = {
    "split": moe_composed.moe_split,
    "slots": lambda _: moe_composed.moe_slots,
    "dense": lambda _: moe_composed.moe_dense,
}
PRESETS: Mapping[str, Mapping[Group, Any]] = {
    "balanced": {"embedding": "int8", "attention": "int8", "router": "float32", "experts": "int4", "lm_head": "int8"},
    "smallest": {"embedding": "int8", "attention": "int4", "router": "float32", "experts": "int4", "lm_head": "int4"},
    # int8 holds MXFP4's values exactly: for cards of 24 GB, and to measure the cost of int4
    "best": {
        **{"embedding": "float16", "attention": "float16", "router": "float32"},
        **{"experts": "int8", "lm_head": "float16"},
    },
}


def workspace(config: GptOssConfig, itemsize: float, limit: Limit) -> Workspace:
    """Activations of one piece of a prompt: an upper bound, in which no stage reuses another's memory.

    The factors were counted in the lab; tests/directml/test_memory.py compares the bound with it.
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
    """The DirectML target with one of the designs of its experts.

    Args:
        design: one of ``DESIGNS``.
        dtype: float type of activations and caches; float32 is for measuring.
        limit: the most bytes that one dequantised weight may take.
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
        compose=compose_from(attention_primitive.prepare, experts, embedding_by_rows, heads_in_pieces(limit)),
        requires={"onnxruntime-directml": ">=1.24.4", "onnxruntime-genai-directml": ">=0.13.1"},
        provider_options=({"dml": {}},),
        inputs=("position_ids",),
        search={"chunk_size": PIECE},
        workspace=partial(workspace, limit=limit),
        on_cpu=compose_from(attention_primitive.prepare, on_cpu, embedding_by_rows, heads_in_pieces(limit)),
    )


TARGET = target()
