"""CPU with int4 experts, for hosts pinned to an older onnxruntime (Foundry Local)."""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph import attention_gqa, moe_qmoe
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.schemes import SchemeType
from gptoss_convert.targets.base import CPU_DENSE, Target, compose_from

_EXPERTS: dict[SchemeType, Layer] = {"int4": moe_qmoe.moe_integer, "int8": moe_qmoe.moe_integer}

TARGET = Target(
    name="cpu-int4",
    summary="experts in int4 blocks, for onnxruntime 1.23 and later",
    dtype=ir.DataType.FLOAT,
    opset=21,
    ir_version=10,
    presets={name: {**CPU_DENSE[name], "experts": "int4"} for name in ("balanced", "smallest")},
    compose=compose_from(attention_gqa.prepare, _EXPERTS),
    requires={"onnxruntime": ">=1.23", "onnxruntime-genai": ">=0.9"},
)
