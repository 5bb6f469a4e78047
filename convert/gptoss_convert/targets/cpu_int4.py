"""CPU with int4 experts, for hosts pinned to an older onnxruntime (Foundry Local)."""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph import attention_gqa, moe_qmoe
from gptoss_convert.graph.decoder import Composition, Layer
from gptoss_convert.schemes import Quantisation, SchemeType
from gptoss_convert.targets.base import HEADS, Logits, Target, pick_experts

_EXPERTS: dict[SchemeType, Layer] = {"int4": moe_qmoe.moe_integer, "int8": moe_qmoe.moe_integer}


def _compose(quantisation: Quantisation, logits: Logits) -> Composition:
    return Composition(attention_gqa.prepare, pick_experts(_EXPERTS, quantisation), HEADS[logits])


_INT8 = {"type": "int8", "accuracy_level": 4}
_INT4 = {"type": "int4", "accuracy_level": 4}

TARGET = Target(
    name="cpu-int4",
    summary="experts in int4 blocks, for onnxruntime 1.23 and later",
    dtype=ir.DataType.FLOAT,
    opset=21,
    ir_version=10,
    presets={
        "balanced": {
            **{"embedding": "bfloat16", "attention": _INT8, "router": "float32"},
            **{"experts": "int4", "lm_head": _INT8},
        },
        "smallest": {
            **{"embedding": "bfloat16", "attention": _INT4, "router": "float32"},
            **{"experts": "int4", "lm_head": _INT4},
        },
    },
    compose=_compose,
    requires={"onnxruntime": ">=1.23", "onnxruntime-genai": ">=0.9"},
)
