"""CPU: experts in the checkpoint's own MXFP4, dense weights as the preset says.

onnxruntime 1.32's QMoE computes with the published bytes: they are exact, need no repacking at load, and are faster
than int4 (docs/conversion.md). The embedding is a copy as well; only the rows in use are read from disk.
"""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph import attention_gqa, moe_float, moe_qmoe
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.schemes import SchemeType
from gptoss_convert.targets.base import CPU_DENSE, Target, compose_from

_EXPERTS: dict[SchemeType, Layer] = {
    "mxfp4": moe_qmoe.moe_mxfp4,
    "int4": moe_qmoe.moe_integer,
    "int8": moe_qmoe.moe_integer,
    "float32": moe_float.moe_float,
}

TARGET = Target(
    name="cpu",
    summary="experts in native MXFP4, for onnxruntime 1.32 and later",
    dtype=ir.DataType.FLOAT,
    opset=24,  # the first with float8_e8m0, the dtype of MXFP4's scales
    ir_version=11,
    presets={name: {**dense, "experts": "mxfp4"} for name, dense in CPU_DENSE.items()},
    compose=compose_from(attention_gqa.prepare, _EXPERTS),
    requires={"onnxruntime": ">=1.32", "onnxruntime-genai": ">=0.18"},
)
